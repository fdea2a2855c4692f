"""A small text grammar: named lists of alternatives whose `{slots}` are filled at random.

A grammar file has sections. `[name]` starts a section with one alternative a line, `[name] *` one with
alternatives parted by commas, `[name] =` one of pairs `left|right` parted by semicolons.
In an alternative `{rule}` is replaced by one of the alternatives of `rule`, or by a value of the same name in
the scope; `{name:rule}` also keeps the choice in the scope; `{2-9}` is a whole number from 2 to 9.
"""

import random
import re
from functools import cache
from pathlib import Path

GRAMMAR_FOLDER = Path(__file__).parent / "grammar"
SLOT = re.compile(r"\{([^{}]+)\}")
SENTENCE_START = re.compile(r'(?:^"?|(?<=[.!?] )|(?<=[.!?] ")|(?<=\n)|(?<=\."\s))[a-z]')
ARTICLE = re.compile(r"\b([Aa]) (?=(?!uni|use|eu|one)[aeiou])")

Scope = dict[str, str]


def read_sections() -> tuple[dict[str, list[str]], dict[str, list[tuple[str, str]]]]:
    """The rules and the pair lists of all grammar files."""
    rules: dict[str, list[str]] = {}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(GRAMMAR_FOLDER.glob("*.txt")):
        name, kind = "", ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if header := re.fullmatch(r"\[(\w+)\] ?([*=]?)", line):
                name, kind = header.groups()
            elif kind == "*":
                rules.setdefault(name, []).extend(word.strip() for word in line.split(","))
            elif kind == "=":
                items = [item.split("|") for item in line.split(";")]
                pairs.setdefault(name, []).extend((left.strip(), right.strip()) for left, right in items)
            elif line:
                rules.setdefault(name, []).append(line)
    return rules, pairs


RULES, PAIRS = read_sections()


@cache
def parts_of(template: str) -> tuple[str, ...]:
    """The template cut at its slots: text, slot, text, slot, ..., text."""
    return tuple(SLOT.split(template))


def pick(rng: random.Random, rule: str, scope: Scope | None = None) -> str:
    """One alternative of a rule, filled; inside one scope the same alternative is rarely taken twice."""
    scope = {} if scope is None else scope
    options = RULES[rule]
    for _ in range(4):
        chosen = options[int(rng.random() * len(options))]
        if f"used {chosen}" not in scope:
            break
    scope[f"used {chosen}"] = ""
    return expand(rng, chosen, scope)


def slot_value(rng: random.Random, slot: str, scope: Scope) -> str:
    """What replaces one slot."""
    if slot in scope:
        return scope[slot]
    if slot[0].isdigit():
        low, high = slot.split("-")
        return str(rng.randint(int(low), int(high)))
    name, _, rule = slot.partition(":")
    if rule:
        scope[name] = scope.get(name) or pick(rng, rule, scope)
        return scope[name]
    return pick(rng, slot, scope)


def expand(rng: random.Random, template: str, scope: Scope) -> str:
    """The template with every slot replaced."""
    parts = parts_of(template)
    if len(parts) == 1:
        return template
    return "".join(slot_value(rng, part, scope) if at % 2 else part for at, part in enumerate(parts))


def tidy(text: str) -> str:
    """Sentences start with a capital; "a" becomes "an" before a vowel."""
    text = ARTICLE.sub(r"\1n ", text)
    return SENTENCE_START.sub(lambda match: match.group().upper(), text)


def new_scope(rng: random.Random) -> Scope:
    """Three people with their pronouns, and a place, town and thing that stay the same in one document."""
    scope: Scope = {}
    for key in ("a", "b", "c"):
        female = rng.random() < 0.5
        name = rng.choice([name for name in RULES["girl" if female else "boy"] if name not in scope.values()])
        scope[key] = name
        words = ("she", "her", "her", "Mrs") if female else ("he", "him", "his", "Mr")
        for suffix, word in zip(("he", "him", "his", "title"), words, strict=True):
            scope[f"{key}_{suffix}"] = word
    for key in ("place", "town", "thing", "colour"):
        scope[key] = rng.choice(RULES[key])
    return scope


def sentences(rng: random.Random, scope: Scope, *rules: str) -> str:
    """One filled alternative of each rule, joined to a paragraph."""
    return tidy(" ".join(pick(rng, rule, scope) for rule in rules))
