"""Writes the text that luthier/tiny is pretrained on: OUT_FOLDER/corpus.jsonl, rows of text and origin.

Run as `python3 pretraining/generate.py OUT_FOLDER [--megabytes 16] [--seed 0]`. The same seed gives the same bytes.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import arithmetic
import lists
import opinions
import originals
import prose
import records
from formats import Family, Maker, chat, examples, single
from grammar import new_scope

Writer = Callable[[random.Random], str]

# Weight and families of each subject that tasks are drawn from.
SUBJECTS: dict[str, tuple[int, Sequence[Family]]] = {
    "reading": (26, prose.FAMILIES),
    "opinions": (26, opinions.FAMILIES),
    "arithmetic": (12, arithmetic.FAMILIES),
    "lists": (22, lists.FAMILIES),
    "records": (14, records.FAMILIES),
}


def draw_maker(rng: random.Random) -> Maker:
    """A maker of tasks of one kind."""
    weights = [weight for weight, _ in SUBJECTS.values()]
    _, families = rng.choices(list(SUBJECTS.values()), weights)[0]
    return rng.choice(families)(rng)


def task_text(rng: random.Random) -> str:
    """A document with one task."""
    return single(rng, draw_maker(rng)())


def examples_text(rng: random.Random) -> str:
    """A document with several tasks of one kind."""
    return examples(rng, draw_maker(rng))


def chat_text(rng: random.Random) -> str:
    """A chat; half of the longer ones stay with one kind of task."""
    turns = rng.choices((1, 2, 3, 4), (5, 3, 2, 1))[0]
    makers = [draw_maker(rng)] * turns if rng.random() < 0.5 else [draw_maker(rng) for _ in range(turns)]
    return chat(rng, makers)


def letter_text(rng: random.Random) -> str:
    """A letter between new people."""
    return prose.letter(rng, new_scope(rng))


# Share of the documents and writer of each generated origin.
WRITERS: dict[str, tuple[float, Writer]] = {
    "generated/remarks": (7, prose.remarks),
    "generated/stories": (14, prose.titled_story),
    "generated/descriptions": (6, prose.description),
    "generated/dialogues": (5, prose.dialogue),
    "generated/letters": (4, letter_text),
    "generated/opinions": (8, opinions.plain_opinion),
    "generated/glossary": (1, prose.glossary),
    "generated/records": (2, records.plain_records),
    "generated/tasks": (34, task_text),
    "generated/examples": (12, examples_text),
    "generated/chat": (14, chat_text),
}


def line_of(origin: str, text: str) -> str:
    """One line of the corpus."""
    return json.dumps({"text": text, "origin": origin}, ensure_ascii=False) + "\n"


def corpus_lines(megabytes: float, seed: int) -> list[str]:
    """The shuffled lines: the sources once each, then generated documents, none twice, up to the size of text asked."""
    rng = random.Random(seed)
    sources = originals.documents(rng)
    found = [line_of(origin, text) for origin, text in sources]
    size = sum(len(text.encode()) for _, text in sources)
    names, weights = list(WRITERS), [weight for weight, _ in WRITERS.values()]
    seen: set[str] = set()
    while size < megabytes * 1_000_000:
        origin = rng.choices(names, weights)[0]
        text = WRITERS[origin][1](rng)
        if text not in seen:
            seen.add(text)
            found.append(line_of(origin, text))
            size += len(text.encode())
    rng.shuffle(found)
    return found


def write_corpus(folder: Path, megabytes: float = 16, seed: int = 0) -> Path:
    """Writes the corpus file and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(corpus_lines(megabytes, seed))
    return path


def main() -> None:
    """Reads the command line and writes the corpus."""
    parser = argparse.ArgumentParser(description="Write the pretraining text of luthier/tiny.")
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(write_corpus(given.out_folder, given.megabytes, given.seed))


if __name__ == "__main__":
    main()
