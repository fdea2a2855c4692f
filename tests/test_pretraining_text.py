"""The pretraining text: the same bytes for the same seed, well-formed rows, and no row of any held-out data in it."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRETRAINING = ROOT / "pretraining"
REVIEWS = ROOT / "examples" / "reviews"
GSM8K = ROOT / "tests" / "samples" / "gsm8k"
# The sources alone take about 1.7 MB and are in at any size; the rest of the sample is generated.
MEGABYTES = 4.0
# Shorter fields, such as the label, occur in any English text.
SHORTEST = 20
SLOTS = ("{a}", "{b}", "{x}", "{i}", "{c}", "{r}", ":thing}", "{place}")


def write_corpus(folder: Path, megabytes: float, seed: int) -> bytes:
    """Generates a corpus in this process and returns the file's bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PRETRAINING))
        for name in [path.stem for path in PRETRAINING.glob("*.py")]:
            patch.delitem(sys.modules, name, raising=False)
        path: Path = importlib.import_module("generate").write_corpus(folder, megabytes, seed)
    return path.read_bytes()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A corpus with all the sources and a good part of generated text."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), MEGABYTES, 0)


def plain(text: str) -> str:
    """The text in lower case, with one space for any run of white space."""
    return " ".join(text.lower().split())


def searchable(corpus: bytes) -> str:
    """All texts of a corpus, made plain."""
    return "\n".join(plain(json.loads(line)["text"]) for line in corpus.decode().splitlines())


def held_out() -> Iterator[str]:
    """The longer fields of the reviews (all files) and of the validation and test rows of GSM8K."""
    paths = [*REVIEWS.rglob("*.jsonl"), *GSM8K.glob("validation/*.jsonl"), *GSM8K.glob("test/*.jsonl")]
    for path in sorted(paths):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from (text for text in json.loads(line).values() if isinstance(text, str) and len(text) >= SHORTEST)


def found_in(text: str, fields: list[str]) -> list[str]:
    """The fields that occur in the text."""
    return [field for field in fields if plain(field) in text]


def test_same_seed_same_bytes(corpus: bytes, tmp_path: Path) -> None:
    assert write_corpus(tmp_path / "again", MEGABYTES, 0) == corpus


def test_other_seed_other_bytes(corpus: bytes, tmp_path: Path) -> None:
    assert write_corpus(tmp_path / "other", MEGABYTES, 1) != corpus


def test_every_line_has_text_and_origin(corpus: bytes) -> None:
    origins = set()
    for line in corpus.decode().splitlines():
        row = json.loads(line)
        assert set(row) == {"text", "origin"}
        assert row["text"].strip()
        assert "\0" not in row["text"]
        origins.add(row["origin"])
    assert {"gsm8k", "superni", "self_instruct", "shakespeare"} < origins
    assert sum(origin.startswith("generated/") for origin in origins) >= 10


def test_generated_texts_have_no_unfilled_slots(corpus: bytes) -> None:
    for line in corpus.decode().splitlines():
        row = json.loads(line)
        if row["origin"].startswith("generated/"):
            assert not [slot for slot in SLOTS if slot in row["text"]]


def test_no_held_out_row_is_in_the_text(corpus: bytes) -> None:
    fields = sorted(set(held_out()))
    assert len(fields) > 1500
    assert found_in(searchable(corpus), fields) == []


def test_the_search_finds_a_planted_row(corpus: bytes) -> None:
    fields = sorted(set(held_out()))
    planted = json.dumps({"text": f"Q: {fields[0].upper()}\n", "origin": "planted"}).encode()
    assert found_in(searchable(corpus[: corpus.index(b"\n") + 1] + planted), fields) == [fields[0]]


def test_the_sources_hold_the_training_rows_of_gsm8k() -> None:
    for name in ("part-0.jsonl", "part-1.jsonl"):
        assert (PRETRAINING / "sources" / "gsm8k" / name).read_bytes() == (GSM8K / "train" / name).read_bytes()
