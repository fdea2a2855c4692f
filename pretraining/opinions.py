"""Opinions on films, meals, books, trips and more, and questions on whether they are good or bad."""

import random

from formats import Maker, Task
from grammar import RULES, Scope, new_scope, pick, tidy

# Each vocabulary names a good, a bad and (where there is one) an in-between opinion.
LABELS = [
    ("good", "bad", "in between"), ("happy", "unhappy", ""), ("recommend", "avoid", ""), ("liked", "disliked", ""),
    ("pleased", "displeased", "undecided"), ("5", "1", "3"), ("5 stars", "1 star", "3 stars"),
    ("great", "awful", "so-so"),
    ("thumbs up", "thumbs down", ""), ("yes", "no", "partly"), ("Yes", "No", "Partly"), ("A", "B", "C"),
    ("praise", "complaint", "both"), ("like", "dislike", "neutral"), ("favourable", "unfavourable", "divided"),
    ("glad", "angry", "torn"), ("delighted", "disappointed", "unsure"), ("high", "low", "middle"), ("+", "-", "+-"),
    ("The writer is happy.", "The writer is unhappy.", "The writer has mixed feelings."),
    ("It was good.", "It was bad.", "It was good and bad."), ("satisfied", "dissatisfied", "mixed feelings"),
    ("love", "hate", ""), ("enjoyed", "did not enjoy", "enjoyed in part"), ("Good", "Bad", "Average"),
    ("approve", "reject", "abstain"), ("smile", "frown", "shrug"), ("up", "down", "flat"), ("win", "fail", "draw"),
]
GOOD, BAD, BOTH = range(3)


def verdict(rng: random.Random, feeling: int, scope: Scope) -> list[str]:
    """A closing line, more often absent than present for short opinions."""
    if rng.random() < 0.45:
        return []
    return [pick(rng, ("verdict_good", "verdict_bad", "verdict_both")[feeling], scope)]


def opinion(rng: random.Random, feeling: int, longest: int = 4) -> str:
    """A paragraph on one experience with the feeling given."""
    scope = new_scope(rng)
    domain = rng.choice(RULES["domains"])
    lines = [pick(rng, f"intro_{domain}", scope)] if rng.random() < 0.8 else []
    if rng.random() < 0.3:
        lines.append(pick(rng, "plain_fact", scope))
    if feeling == BOTH:
        first, turn, second = rng.choice([("good", "turn", "bad"), ("bad", "turn_up", "good")])
        lines.append(pick(rng, f"{first}_{domain}", scope))
        lines.append(pick(rng, turn, scope) + " " + pick(rng, f"{second}_{domain}", scope))
    else:
        name = "good" if feeling == GOOD else "bad"
        lines.extend(pick(rng, f"{name}_{domain}", scope) for _ in range(rng.randint(1, longest)))
    lines.extend(verdict(rng, feeling, scope))
    return tidy(" ".join(lines))


def plain_opinion(rng: random.Random) -> str:
    """An opinion without a question."""
    return opinion(rng, rng.choice((GOOD, GOOD, BAD, BAD, BOTH)))


def judging(rng: random.Random) -> Maker:
    """Opinions to be named with the words of one label vocabulary, which the instruction often lists."""
    labels = rng.choice(LABELS)
    feelings = [feeling for feeling in (GOOD, BAD, BOTH) if labels[feeling]]
    if len(feelings) == 3 and rng.random() < 0.3:
        feelings = [GOOD, BAD]
    instruction = tidy(pick(rng, "ask"))
    if rng.random() < 0.7:
        options = [labels[feeling] for feeling in feelings]
        rng.shuffle(options)
        listed = ", ".join(options[:-1]) + " or " + options[-1]
        instruction += rng.choice([f" Answer with {listed}.", f" Choose from: {', '.join(options)}.", f" ({listed})"])

    def make() -> Task:
        feeling = rng.choice(feelings)
        return Task(instruction, opinion(rng, feeling, 3), labels[feeling])

    return make


def contrast(rng: random.Random) -> Maker:
    """Two short opinions; which of them is the good (or bad) one?"""
    wanted = rng.choice((GOOD, BAD))
    instruction = f"Which text is {'full of praise' if wanted == GOOD else 'a complaint'}, the first or the second?"

    def make() -> Task:
        first = rng.choice((GOOD, BAD))
        text = f"1. {opinion(rng, first, 1)}\n2. {opinion(rng, 1 - first, 1)}"
        return Task(instruction, text, "the first" if first == wanted else "the second")

    return make


def wish(rng: random.Random) -> Maker:
    """Requests to write an opinion with a given feeling."""

    def make() -> Task:
        feeling = rng.choice((GOOD, BAD, BOTH))
        word = ("kind", "harsh", "balanced")[feeling]
        return Task(f"Write a {word} opinion about something you did.", "", opinion(rng, feeling))

    return make


FAMILIES = [judging, judging, judging, judging, judging, contrast, wish]
