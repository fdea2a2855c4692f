"""Prose without a task (stories, descriptions, dialogues, letters) and questions about such prose."""

import random

from formats import Maker, Task
from grammar import PAIRS, RULES, Scope, expand, new_scope, pick, sentences, tidy

STORY_SHAPES = [
    ("opening", "trouble", "feeling", "attempt", "help", "ending"),
    ("opening", "middle", "trouble", "feeling", "attempt", "attempt", "help", "ending"),
    ("opening", "trouble", "help", "ending"),
    ("opening", "middle", "middle", "ending"),
    ("opening", "feeling", "attempt", "ending"),
    ("opening", "middle", "trouble", "attempt", "feeling", "help", "middle", "ending", "ending"),
    ("opening", "trouble", "feeling"),
    ("opening", "ending"),
]


def story(rng: random.Random, scope: Scope) -> str:
    """A short story, sometimes with paragraphs and a moral."""
    lines = [pick(rng, rule, scope) for rule in rng.choice(STORY_SHAPES)]
    if rng.random() < 0.2:
        lines.insert(len(lines) // 2, "\n\n")
    text = tidy(" ".join(lines).replace(" \n\n ", "\n\n"))
    if rng.random() < 0.1:
        text += "\n\nThe moral of the story: " + tidy(pick(rng, "moral", scope))
    return text


def titled_story(rng: random.Random) -> str:
    """A story, sometimes below its title."""
    scope = new_scope(rng)
    text = story(rng, scope)
    if rng.random() < 0.25:
        form = rng.choice(["{a} and the {colour} {thing}", "the {thing} of {town}", "A {adj} {thing}", "{a} in {town}"])
        text = tidy(expand(rng, form, scope)) + "\n\n" + text
    return text


def description(rng: random.Random) -> str:
    """One to three descriptive paragraphs."""
    return "\n\n".join(
        sentences(rng, new_scope(rng), "description") for _ in range(rng.choices((1, 2, 3), (6, 3, 1))[0])
    )


def remarks(rng: random.Random) -> str:
    """Everyday thoughts and news in a row."""
    rules = ["remark", "remark", "remark", "middle", "plain_fact", "letter_body", *RULES["topics"]]
    scope = new_scope(rng)
    return sentences(rng, scope, *(rng.choice(rules[:3] if rng.random() < 0.6 else rules)
                                   for _ in range(rng.randint(2, 9))))


def dialogue(rng: random.Random) -> str:
    """A talk between two people, one line a turn."""
    scope = new_scope(rng)
    lines = [pick(rng, "dialogue_open", scope)]
    for at in range(rng.randint(1, 8)):
        scope["x"] = scope["b" if at % 2 == 0 else "a"]
        lines.append(pick(rng, "dialogue_turn", scope))
    scope["x"] = scope["b" if len(lines) % 2 else "a"]
    lines.append(pick(rng, "dialogue_end", scope))
    return tidy("\n".join(lines))


def letter(rng: random.Random, scope: Scope) -> str:
    """A letter or email."""
    body = sentences(rng, scope, "letter_open", *["letter_body"] * rng.randint(1, 4))
    greeting = expand(rng, rng.choice(["Dear {b},", "Hello {b},", "Dear {b_title} {surname},", "Hi {b},"]), scope)
    text = f"{greeting}\n\n{body}\n\n{tidy(pick(rng, 'letter_end', scope))}\n{scope['a']}"
    if rng.random() < 0.4:
        subject = expand(rng, rng.choice(["The {thing}", "{day:day}", "News from {town}", "Our meeting"]), scope)
        text = f"From: {scope['a']}\nTo: {scope['b']}\nSubject: {subject}\n\n{text}"
    return text


def glossary(rng: random.Random) -> str:
    """Short definitions in a row."""
    chosen = rng.sample(PAIRS["definitions"], rng.randint(2, 5))
    form = rng.choice(["{x} is {y}.", "{x}: {y}", "What is {x}? It is {y}."])
    article = "" if form.startswith("{x}:") else "a "
    lines = (form.replace("{x}", article + left).replace("{y}", right) for left, right in chosen)
    return tidy(rng.choice(["\n", " "]).join(lines) if form.endswith(".") else "\n".join(lines))


STORY_QUESTIONS = [
    ("Who is the story about?", "{a}"),
    ("What is the name of the main person?", "{a}"),
    ("What colour is mentioned with the {thing}?", "{colour}"),
    ("Which thing is the story about?", "the {thing}"),
    ("Give the text a title.", "{a} and the {thing}"),
    ("Write a headline for this text.", "{a} and the {colour} {thing}"),
    ("Sum up the text in one sentence.", "It is about {a} and a {colour} {thing}."),
    ("Name the thing in the text.", "{thing}"),
]


def story_questions(rng: random.Random) -> Maker:
    """Questions on a short story, answered by copying from it."""
    instruction, answer = rng.choice(STORY_QUESTIONS)

    def make() -> Task:
        scope = new_scope(rng)
        opening = expand(rng, rng.choice([line for line in RULES["opening"] if "{colour} {thing}" in line]), scope)
        text = tidy(" ".join([opening, *(pick(rng, rule, scope) for rule in rng.choice(STORY_SHAPES)[1:])]))
        response = tidy(expand(rng, answer, scope)) if answer.endswith(".") else expand(rng, answer, scope)
        return Task(expand(rng, instruction, scope), text, response)

    return make


FACT_FORMS = [
    ("{a} lives in {town}.", "Where does {a} live?", "{town}"),
    ("{a} works as a {job:job}.", "What is the work of {a}?", "{job}"),
    ("{a} likes {food:food}.", "What does {a} like?", "{food}"),
    ("{a} has a {pet:pet}.", "Which animal does {a} have?", "{pet}"),
    ("{a} was born in {month:month}.", "When was {a} born?", "{month}"),
    ("the {thing} is {colour}.", "What colour is the {thing}?", "{colour}"),
    ("the {thing} is in the {place}.", "Where is the {thing}?", "in the {place}"),
    ("{a} gave the {thing} to {b}.", "Who has the {thing} now?", "{b}"),
    ("{b} is the {relative:relative} of {a}.", "Who is the {relative} of {a}?", "{b}"),
    ("the lesson starts at {hour:hour} o'clock.", "When does the lesson start?", "at {hour} o'clock"),
    ("{b} travels by {vehicle:vehicle}.", "How does {b} travel?", "by {vehicle}"),
    ("{c} paid {price:price} dollars for the {thing2:thing}.", "How much did {c} pay?", "{price} dollars"),
    ("{c} is {age:age} years old.", "How old is {c}?", "{age} years old"),
    ("{b} enjoys {hobby:hobby}.", "What does {b} enjoy?", "{hobby}"),
]


def fact_questions(rng: random.Random) -> Maker:
    """A handful of facts and a question on one of them."""

    def make() -> Task:
        scope = new_scope(rng)
        scope |= {"hour": str(rng.randint(7, 12)), "price": str(rng.randint(3, 90)), "age": str(rng.randint(5, 90))}
        chosen = rng.sample(FACT_FORMS, rng.randint(2, 6))
        text = tidy(" ".join(expand(rng, fact, scope) for fact, _, _ in chosen))
        _, question, answer = rng.choice(chosen)
        return Task(expand(rng, question, scope), text, expand(rng, answer, scope))

    return make


def yes_no_questions(rng: random.Random) -> Maker:
    """A fact and a statement that it bears out or not."""
    yes, no = rng.choice([("yes", "no"), ("Yes", "No"), ("true", "false"), ("True", "False"), ("right", "wrong")])
    instruction = rng.choice(["Is the statement true?", "Does the text say so?", f"Answer with {yes} or {no}."])

    def make() -> Task:
        scope = new_scope(rng)
        right = rng.random() < 0.5
        subject, rule, form = rng.choice(
            [("a", "place", "{x} is in the {y}."), ("b", "job", "{x} is a {y}."), ("c", "food", "{x} eats {y}."),
             ("thing", "colour", "the {x} is {y}."), ("a", "hobby", "{x} likes {y}."), ("b", "pet", "{x} has a {y}.")]
        )
        said, other = rng.sample(RULES[rule], 2)
        fact = form.replace("{x}", scope[subject])
        told = fact.replace("{y}", said)
        text = " ".join([told, *(pick(rng, "plain_fact", scope) for _ in range(rng.randint(0, 2)))])
        statement = fact.replace("{y}", said if right else other)
        return Task(instruction, tidy(text + " Statement: " + statement), yes if right else no)

    return make


WRITING_REQUESTS = [
    ("Write a short story about a {colour} {thing}.", "story"),
    ("Tell me a story about {a} and {b}.", "story"),
    ("Write a letter from {a} to {b}.", "letter"),
    ("Write an email to {b}. Sign it as {a}.", "letter"),
]


def writing(rng: random.Random) -> Maker:
    """Requests for a story or a letter with given names and things."""

    def make() -> Task:
        scope = new_scope(rng)
        request, kind = rng.choice(WRITING_REQUESTS)
        instruction = expand(rng, request, scope)
        return Task(instruction, "", story(rng, scope) if kind == "story" else letter(rng, scope))

    return make


def rewriting(rng: random.Random) -> Maker:
    """The same sentence with one thing changed."""
    swap = rng.choice(["name", "colour", "question", "time"])
    new_name = rng.choice(RULES["girl"])
    instruction = {
        "name": f"Change the name to {new_name}.",
        "colour": "Change the colour to blue.",
        "question": "Turn the sentence into a question.",
        "time": "Put the sentence in the past.",
    }[swap]

    def make() -> Task:
        scope = new_scope(rng) | {"colour": rng.choice(["red", "green", "white", "black", "yellow"])}
        if swap == "name":
            text = tidy(expand(rng, "{a} {verb_past} near the {place} with a {thing}.", scope))
            return Task(instruction, text, text.replace(scope["a"], new_name, 1))
        if swap == "colour":
            text = expand(rng, "{a} keeps a {colour} {thing} in the {place}.", scope)
            return Task(instruction, text, text.replace(scope["colour"], "blue", 1))
        rest = expand(rng, "{a} {v} in the {place} of {town}.", scope | {"v": "\0"})
        verb, past = rng.choice([("is", "was"), ("can sing", "could sing"), ("has to wait", "had to wait")])
        if swap == "time":
            return Task(instruction, rest.replace("\0", verb), rest.replace("\0", past))
        return Task(instruction, rest.replace("\0", "is"), "Is " + rest.replace(" \0", "").replace(".", "?"))

    return make


FAMILIES = [story_questions, fact_questions, fact_questions, yes_no_questions, writing, rewriting]
