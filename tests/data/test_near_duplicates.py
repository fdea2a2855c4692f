from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import near_duplicates
from luthier.data.near_duplicates import Sketches, fold, sketch

WORDS = ["apple", "river", "stone", "quiet", "green", "window", "carry", "listen", "paper", "cloud"]


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) + draw.choice("abcdefgh") for _ in range(words))


def groups(texts: list[str], batch: int = 7) -> list[int]:
    sketches = Sketches()
    for start in range(0, len(texts), batch):
        sketches.add(texts[start : start + batch])
    return [int(group) for group in sketches.groups()]


def test_case_numbers_and_punctuation_are_folded() -> None:
    assert fold("Tom has 12 EGGS, ok?") == fold("tom has 97 eggs - OK")
    assert fold("GROSS") == fold("groß")
    texts = ["Tom has 12 eggs and 3 hens.", "unrelated text entirely", "tom has 97 EGGS and 4 hens!"]
    assert groups(texts) == [0, 1, 0]


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_plain_ascii_is_folded_as_any_text(text: str) -> None:
    marked = fold("é " + text).removeprefix("é".encode())  # not ASCII: by the regular expressions
    assert marked.strip() == fold(text)


def test_shingles_are_all_windows_of_a_row_and_none_across_rows() -> None:
    """A row's signature does not depend on its neighbours; a changed byte anywhere may change it."""
    draw = random.Random(2)
    rows = [bytes(draw.choices(b"abcdefgh ", k=length)) for length in (0, 3, 8, 9, 30, 200)]
    together = sketch(rows)
    for place, row in enumerate(rows):
        assert np.array_equal(sketch([row])[0], together[place])
    base = rows[4]
    assert not np.array_equal(sketch([b"X" + base[1:]]), sketch([base])) or not np.array_equal(
        sketch([base[:-1] + b"X"]), sketch([base])
    )


def test_a_small_edit_of_a_long_text_is_near() -> None:
    draw = random.Random(1)
    texts = [sentence(draw, 60) for _ in range(40)]
    edited = [text.replace(text.split()[30], "changed", 1) for text in texts]
    found = groups(texts + edited)
    assert sum(found[place] == found[place + 40] for place in range(40)) >= 39
    assert len(set(found[:40])) == 40


def test_unrelated_texts_stay_apart() -> None:
    draw = random.Random(2)
    assert groups([sentence(draw, 30) for _ in range(300)]) == list(range(300))


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["a", "b", "a"], ["日本語の文章です", "日本語の文章です"]])
def test_short_and_empty_texts(texts: list[str]) -> None:
    expected = [texts.index(text) for text in texts]
    assert groups(texts) == expected


def test_the_estimate_is_the_jaccard_similarity() -> None:
    draw = random.Random(3)
    errors = []
    for _ in range(40):
        left = sentence(draw, 80)
        right = " ".join(left.split()[: draw.randint(20, 80)] + sentence(draw, 20).split())
        sets = [{fold(text)[start : start + 8] for start in range(len(fold(text)) - 7)} for text in (left, right)]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        signatures = sketch([fold(left), fold(right)])
        errors.append(float(np.mean(signatures[0] == signatures[1])) - true)
    assert abs(float(np.mean(errors))) < 0.03
    assert max(map(abs, errors)) < 0.25


def test_batches_do_not_matter() -> None:
    draw = random.Random(4)
    texts = [sentence(draw, draw.randint(0, 12)) for _ in range(100)] * 2
    assert groups(texts, 1) == groups(texts, 64) == groups(texts, 200)
    assert groups(texts)[100:] == groups(texts)[:100]


PROMPT = f"You are the assistant of Acme. {sentence(random.Random(0), 150)}. Answer from the handbook only: "


def test_what_all_rows_share_makes_no_duplicates() -> None:
    draw = random.Random(5)
    questions = [sentence(draw, 12) for _ in range(60)]
    texts = [PROMPT + question for question in questions]
    assert groups(texts[:9]) == [0] * 9  # as all of them were, with what they share
    assert groups(texts) == list(range(60))
    around = [f"{PROMPT} {question} {PROMPT.upper()} Take 3 steps." for question in questions]
    assert groups(around) == list(range(60))


def test_rows_that_are_alike_beside_what_all_share_are_near() -> None:
    draw = random.Random(6)
    questions = [sentence(draw, 60) for _ in range(30)]
    edited = [text.replace(text.split()[30], "changed", 1) for text in questions]
    found = groups([PROMPT + text for text in questions + edited])
    assert sum(found[place] == found[place + 30] for place in range(30)) >= 28
    assert len(set(found[:30])) == 30


def test_equal_rows_and_few_rows_stay_near() -> None:
    assert groups([PROMPT] * 40) == [0] * 40
    few = [PROMPT + word for word in WORDS[:4]]
    assert groups(few) == [0] * 4  # of so few rows nobody knows which words are the frame


def test_a_prompt_of_some_rows_is_no_frame() -> None:
    draw = random.Random(7)
    plain = [sentence(draw, 12) for _ in range(20)]
    assert len(set(groups(plain + [PROMPT + text for text in plain]))) < 40


def test_only_the_first_rows_say_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "SHARED_ROWS", 20)
    draw = random.Random(8)
    texts = [PROMPT + sentence(draw, 12) for _ in range(60)] + [sentence(draw, 12) for _ in range(10)]
    for batch in (1, 7, 64):
        assert groups(texts, batch) == list(range(70))
    monkeypatch.setattr(near_duplicates, "SHARED_BYTES", 1)
    assert groups(texts, 1) == groups(texts, 64) == list(range(70))
