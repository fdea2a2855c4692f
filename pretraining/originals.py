"""The licensed texts in the sources folder, each written once in one of several forms."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from formats import Task, exchange, single, turn

SOURCES = Path(__file__).parent / "sources"
# Pieces of the model are English: texts mostly in other scripts would only cost it capacity.
LATIN_SHARE = 0.9
LONGEST = 6000
Document = tuple[str, str]


def rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def mostly_latin(text: str) -> bool:
    """Whether nearly all characters are plain ASCII."""
    return sum(char < "\x80" for char in text) >= LATIN_SHARE * len(text)


def word_problems(rng: random.Random) -> Iterator[Document]:
    """The training rows of GSM8K as question and answer, under several prompts."""
    for path in sorted((SOURCES / "gsm8k").glob("*.jsonl")):
        for row in rows(path):
            question, answer = row["question"], row["answer"]
            forms = [
                f"question: {question}\n{answer}",
                f"question: {question}\n\n### Response:\n{answer}",
                f"Q: {question}\nA: {answer}",
                single(rng, Task(question, "", answer)),
                turn("user", question) + turn("assistant", answer),
            ]
            yield "gsm8k", rng.choices(forms, (4, 4, 1, 2, 1))[0]


def instructions(rng: random.Random, folder: str) -> Iterator[Document]:
    """Rows with an instruction, a context and a response under many prompts, one in seven as a chat."""
    for path in sorted((SOURCES / folder).glob("*.jsonl")):
        for row in rows(path):
            task = Task(row["instruction"], row["context"], row["response"])
            if not mostly_latin("".join(task)) or sum(map(len, task)) > LONGEST:
                continue
            if rng.random() < 1 / 7:
                asked, answer = exchange(rng, task)
                yield folder, turn("user", asked) + turn("assistant", answer)
            else:
                yield folder, single(rng, task)


def plays(rng: random.Random) -> Iterator[Document]:
    """Shakespeare in runs of speeches of about a thousand characters."""
    for path in sorted((SOURCES / "shakespeare").glob("*.txt")):
        part: list[str] = []
        limit = rng.randint(300, 1500)
        for speech in path.read_text(encoding="utf-8").split("\n\n"):
            part.append(speech.strip())
            if sum(map(len, part)) >= limit:
                yield "shakespeare", "\n\n".join(part)
                part, limit = [], rng.randint(300, 1500)
        if part:
            yield "shakespeare", "\n\n".join(part)


def documents(rng: random.Random) -> list[Document]:
    """All licensed texts, as (origin, text)."""
    found = [*word_problems(rng), *instructions(rng, "superni"), *instructions(rng, "self_instruct"), *plays(rng)]
    return [(origin, text) for origin, text in found if text.strip()]
