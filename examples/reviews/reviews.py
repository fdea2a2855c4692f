"""Writes the rows of this example: invented product reviews labelled Positive, Negative or Mixed.

Run as `python3 examples/reviews/reviews.py`. The same seed gives the same files. Sentences are put together from the
phrases in `phrases.json`; a row that comes too close to an earlier row is thrown away, and each row for validation and
test has a sentence that no training row has.
"""

import argparse
import json
import random
import re
from pathlib import Path

FOLDER = Path(__file__).parent
LABELS = ("Positive", "Negative", "Mixed")
STARS = {"Positive": (4, 5, 5), "Negative": (1, 1, 2), "Mixed": (3,)}
# Rows of each file; each number is a multiple of the number of labels, so that labels are balanced.
FILES = {"training/train.jsonl": 480, "validation/validation.jsonl": 60, "test/test.jsonl": 120}
NEAREST = 0.6
TEMPLATE = {
    "prompt": "Review of {product_title}: {review_headline}\n{review_body}\n\nWhat does the customer think?",
    "completion": "{sentiment}",
}

Phrases = dict[str, list[str]]
Row = dict[str, str | int]


def five_grams(row: Row) -> set[tuple[str, ...]]:
    """All runs of five words in the title, headline and body."""
    words = re.findall(r"\w+|[^\w\s]", f"{row['product_title']} {row['review_headline']} {row['review_body']}".lower())
    return set(zip(*(words[at:] for at in range(5)), strict=False))


def closeness(first: set[tuple[str, ...]], second: set[tuple[str, ...]]) -> float:
    """Jaccard similarity: shared runs over all runs."""
    return len(first & second) / len(first | second)


def sentences_of(row: Row) -> set[str]:
    """The sentences of the body."""
    return set(re.split(r"(?<=[.!?]) ", str(row["review_body"])))


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


class Reviewer:
    """Draws reviews from the phrases."""

    def __init__(self, rng: random.Random, phrases: Phrases, products: dict[str, list[str]]) -> None:
        self.rng, self.phrases, self.products = rng, phrases, products

    def phrase(self, name: str, noun: str) -> str:
        """One phrase of a list, with the product's noun and a span of time put in."""
        text = self.rng.choice(self.phrases[name])
        return text.replace("{noun}", noun).replace("{span}", self.rng.choice(self.phrases["spans"]))

    def aspect(self, part: str, feeling: str) -> str:
        """A statement on one part of the product."""
        return f"the {part} " + self.phrase(f"{part} {feeling}", "")

    def aspects(self, noun: str, feeling: str, count: int) -> list[str]:
        """Statements on different parts of the product, all praise or all complaint."""
        parts = self.rng.sample(self.products[noun], count)
        return [self.aspect(part, feeling) for part in parts]

    def one_sided(self, noun: str, feeling: str) -> str:
        """A body of one to four sentences that all point the same way."""
        lines = [self.phrase(f"open {feeling}", noun)] if self.rng.random() < 0.6 else []
        parts = self.aspects(noun, feeling, self.rng.randint(1, 2))
        if len(parts) == 2 and self.rng.random() < 0.5:
            parts = [f"{parts[0]} and {parts[1]}"]
        lines += parts
        if len(lines) < 2 or self.rng.random() < 0.5:
            lines.append(self.phrase(f"close {feeling}", noun))
        return " ".join(map(sentence, lines))

    def two_sided(self, noun: str) -> str:
        """A body with praise and complaint, joined by a word such as `but`."""
        first, second = self.rng.sample(self.products[noun], 2)
        good, bad = self.aspect(first, "good"), self.aspect(second, "bad")
        if self.rng.random() < 0.3:
            good, bad = bad, good
        lines = [self.phrase("open mixed", noun)] if self.rng.random() < 0.5 else []
        lines.append(self.rng.choice(self.phrases["joins"]).replace("{x}", good).replace("{y}", bad))
        if self.rng.random() < 0.6:
            lines.append(self.phrase("close mixed", noun))
        return " ".join(map(sentence, lines))

    def row(self, label: str) -> Row:
        """One review with the label given."""
        noun = self.rng.choice(list(self.products))
        feeling = {"Positive": "good", "Negative": "bad", "Mixed": "mixed"}[label]
        return {
            "product_title": f"{self.rng.choice(self.phrases['brands'])} {noun}",
            "star_rating": self.rng.choice(STARS[label]),
            "review_headline": sentence(self.phrase(f"headline {feeling}", noun)).rstrip("."),
            "review_body": self.two_sided(noun) if label == "Mixed" else self.one_sided(noun, feeling),
            "sentiment": label,
        }


def all_rows(seed: int) -> list[Row]:
    """Rows for all files, no two of them nearly the same, the labels in turn."""
    data = json.loads((FOLDER / "phrases.json").read_text(encoding="utf-8"))
    reviewer = Reviewer(random.Random(seed), data["phrases"], data["products"])
    found: list[Row] = []
    grams: list[set[tuple[str, ...]]] = []
    trained: set[str] = set()
    train_rows, *_ = FILES.values()
    while len(found) < sum(FILES.values()):
        row = reviewer.row(LABELS[len(found) % len(LABELS)])
        new, sentences = five_grams(row), sentences_of(row)
        same = any(row["review_body"] == other["review_body"] for other in found)
        if same or any(closeness(new, old) >= NEAREST for old in grams):
            continue
        if len(found) < train_rows:
            trained |= sentences
        elif sentences <= trained:
            continue
        found.append(row)
        grams.append(new)
    return found


def write_files(folder: Path, seed: int = 0) -> None:
    """Writes the three JSONL files and the template."""
    left = all_rows(seed)
    for name, count in FILES.items():
        rows, left = left[:count], left[count:]
        random.Random(seed).shuffle(rows)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8", newline="\n")
    template = json.dumps(TEMPLATE, indent=2) + "\n"
    (folder / "training" / "template.json").write_text(template, encoding="utf-8", newline="\n")


def main() -> None:
    """Reads the command line and writes the files."""
    parser = argparse.ArgumentParser(description="Write the rows of the reviews example.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_files(given.folder, given.seed)


if __name__ == "__main__":
    main()
