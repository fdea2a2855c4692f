"""Small tasks on lists, words and sentences: sort, count, reverse, copy, pick; pairs of words; topics."""

import random
from collections.abc import Callable

from formats import Maker, Task
from grammar import PAIRS, RULES, new_scope, pick, tidy

WORD_RULES = ["animal", "food", "thing", "colour", "job", "place", "plant", "tool", "day", "month", "hobby", "girl",
              "boy"]
Change = Callable[[list[str]], str]

LIST_TASKS: list[tuple[str, Change]] = [
    ("Sort the words from A to Z.", lambda words: ", ".join(sorted(words, key=str.lower))),
    ("Put these words in alphabetical order.", lambda words: ", ".join(sorted(words, key=str.lower))),
    ("How many words are in the list?", lambda words: str(len(words))),
    ("Count the items.", lambda words: str(len(words))),
    ("Reverse the list.", lambda words: ", ".join(reversed(words))),
    ("Write the list backwards.", lambda words: ", ".join(reversed(words))),
    ("Name the first item.", lambda words: words[0]),
    ("Which word comes first?", lambda words: words[0]),
    ("Name the last item.", lambda words: words[-1]),
    ("What is the second word of the list?", lambda words: words[1]),
    ("Leave out the first item.", lambda words: ", ".join(words[1:])),
    ("Write each item on its own line.", lambda words: "\n".join(words)),
    ("Make a numbered list.", lambda words: "\n".join(f"{at}. {word}" for at, word in enumerate(words, 1))),
    ("Make a list with dashes.", lambda words: "\n".join(f"- {word}" for word in words)),
    ("Join the words with 'and'.", lambda words: " and ".join(words)),
    ("Write the words in capital letters.", lambda words: ", ".join(words).upper()),
    ("Repeat the list.", lambda words: ", ".join(words)),
    ("Which word is the longest?", lambda words: max(words, key=len)),
    ("Write the first letter of each word.", lambda words: ", ".join(word[0] for word in words)),
]
WORD_TASKS: list[tuple[str, Change]] = [
    ("Write the word in capital letters.", lambda words: words[0].upper()),
    ("What is the first letter of the word?", lambda words: words[0][0]),
    ("What is the last letter of the word?", lambda words: words[0][-1]),
    ("How many letters does the word have?", lambda words: str(len(words[0].replace(" ", "")))),
    ("Spell the word.", lambda words: "-".join(words[0])),
    ("Repeat the word three times.", lambda words: " ".join(words[:1] * 3)),
    ("Say the word twice.", lambda words: f"{words[0]} {words[0]}"),
    ("Copy the word.", lambda words: words[0]),
    ("Put the word in quotation marks.", lambda words: f'"{words[0]}"'),
]
SENTENCE_TASKS: list[tuple[str, Callable[[str], str]]] = [
    ("Repeat the sentence.", lambda text: text),
    ("Copy this text exactly.", lambda text: text),
    ("Write the sentence in capital letters.", str.upper),
    ("Write the sentence in small letters.", str.lower),
    ("What is the first word?", lambda text: text.split()[0]),
    ("What is the last word?", lambda text: text.split()[-1].strip(".?!\"")),
    ("Count the words.", lambda text: str(len(text.split()))),
    ("Add three exclamation marks.", lambda text: text.rstrip(".") + "!!!"),
    ("Remove the full stop.", lambda text: text.rstrip(".")),
    ("Put the text in quotation marks.", lambda text: f'"{text}"'),
]
PAIR_TASKS = {
    "capitals": ["What is the capital of {x}?", "Name the capital city of {x}."],
    "opposites": ["What is the opposite of {x}?", "Give the opposite: {x}"],
    "plurals": ["What is the plural of {x}?", "Write the plural of {x}."],
    "past": ["What is the past of {x}?", "Yesterday I ... ({x})"],
    "sounds": ["What does a {x} say?", "Which sound does a {x} make?"],
    "babies": ["What is a young {x} called?", "What do you call the child of a {x}?"],
    "usual_colours": ["What colour is {x}?", "Name the colour of {x}."],
    "work_places": ["Where does a {x} work?", "What is the place of work of a {x}?"],
    "spanish": ["How do you say {x} in Spanish?", "Translate into Spanish: {x}"],
    "french": ["How do you say {x} in French?", "Translate into French: {x}"],
    "german": ["How do you say {x} in German?", "Translate into German: {x}"],
    "comparatives": ["Compare: {x}, ...", "What is the comparative of {x}?"],
    "numbers": ["Write {x} in digits.", "Which number is {x}?"],
    "definitions": ["What is this: {x}?", "Explain the word {x}."],
}
PAIR_SENTENCES = {
    "capitals": "The capital of {x} is {y}.",
    "opposites": "The opposite of {x} is {y}.",
    "plurals": "One {x}, two {y}.",
    "past": "Today they {x}, yesterday they {y}.",
    "usual_colours": "The colour of {x} is {y}.",
    "work_places": "A {x} works in a {y}.",
    "comparatives": "This one is {x}, but that one is {y}.",
}


def list_tasks(rng: random.Random) -> Maker:
    """One change to lists of words."""
    instruction, change = rng.choice(LIST_TASKS)

    def make() -> Task:
        words = rng.sample(RULES[rng.choice(WORD_RULES)], rng.randint(3, 7))
        return Task(instruction, ", ".join(words), change(words))

    return make


def word_tasks(rng: random.Random) -> Maker:
    """One change to single words."""
    instruction, change = rng.choice(WORD_TASKS)

    def make() -> Task:
        word = rng.choice(RULES[rng.choice(WORD_RULES)])
        return Task(instruction, word, change([word]))

    return make


def sentence_tasks(rng: random.Random) -> Maker:
    """One change to single sentences."""
    instruction, change = rng.choice(SENTENCE_TASKS)

    def make() -> Task:
        scope = new_scope(rng)
        rule = rng.choice(["middle", "attempt", "plain_fact", "letter_body", "feeling", *RULES["topics"]])
        text = tidy(pick(rng, rule, scope))
        return Task(instruction, text, change(text))

    return make


def pair_tasks(rng: random.Random) -> Maker:
    """Questions with one known answer (capitals, opposites, ...)."""
    kind = rng.choice(list(PAIR_TASKS))
    form = rng.choice(PAIR_TASKS[kind])
    sentence = PAIR_SENTENCES.get(kind, "") if rng.random() < 0.3 else ""

    def make() -> Task:
        left, right = rng.choice(PAIRS[kind])
        response = tidy(sentence.replace("{x}", left).replace("{y}", right)) if sentence else right
        return Task(form.replace("{x}", left), "", response)

    return make


def lookups(rng: random.Random) -> Maker:
    """Invented pairs to look up in a list: the answer is only in the text."""
    left_rule, right_rule = rng.choice([("girl", "job"), ("boy", "colour"), ("town", "food"), ("animal", "thing"),
                                        ("thing", "place"), ("day", "hobby"), ("girl", "town"), ("job", "tool")])
    link = rng.choice([": ", " - ", " = ", " | ", " -> "])

    def make() -> Task:
        count = rng.randint(3, 6)
        lefts, rights = rng.sample(RULES[left_rule], count), rng.sample(RULES[right_rule], count)
        at = rng.randrange(count)
        text = "\n".join(left + link + right for left, right in zip(lefts, rights, strict=True))
        if rng.random() < 0.3:
            return Task(f"Which entry belongs to {rights[at]}?", text, lefts[at])
        return Task(f"What belongs to {lefts[at]}?", text, rights[at])

    return make


def odd_one_out(rng: random.Random) -> Maker:
    """Which word does not fit with the others?"""
    instruction = rng.choice(["Which word does not belong?", "Find the odd one out."])

    def make() -> Task:
        main, other = rng.sample(["animal", "food", "colour", "job", "month", "vehicle", "girl", "drink"], 2)
        odd = rng.choice(RULES[other])
        words = [*rng.sample(RULES[main], 3), odd]
        rng.shuffle(words)
        return Task(instruction, ", ".join(words), odd)

    return make


def categories(rng: random.Random) -> Maker:
    """Name the kind of a word."""
    names = rng.sample(["animal", "food", "colour", "job", "month", "vehicle", "plant", "tool"], rng.randint(2, 5))
    instruction = "What is it? Options: " + ", ".join(names)

    def make() -> Task:
        name = rng.choice(names)
        return Task(instruction, rng.choice(RULES[name]), name)

    return make


def topics(rng: random.Random) -> Maker:
    """Name the topic of one or two sentences, chosen from options."""
    options = rng.sample(RULES["topics"], rng.randint(2, 6))
    asked = rng.choice(["What is the topic?", "Choose the topic of the text.", "Which section does this belong to?"])
    lead = rng.choice([" Options: ", " Choose from: ", " "])
    forms: list[Callable[[str], str]] = [str.lower, str.capitalize, str.upper]
    shown = rng.choice(forms)
    instruction = asked + lead + ", ".join(map(shown, options))

    def make() -> Task:
        topic, scope = rng.choice(options), new_scope(rng)
        text = tidy(" ".join(pick(rng, topic, scope) for _ in range(rng.randint(1, 3))))
        return Task(instruction, text, shown(topic))

    return make


FAMILIES = [list_tasks, list_tasks, word_tasks, sentence_tasks, pair_tasks, pair_tasks, lookups, odd_one_out,
            categories, topics, topics]
