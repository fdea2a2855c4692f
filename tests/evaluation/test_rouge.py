"""ROUGE equals rouge-score on English, and sees every other script too."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from luthier.evaluation.rouge import (
    MAX_TEXT_CHARACTERS,
    ROUGE_NAMES,
    Rouge,
    UnicodeTokenizer,
    has_non_ascii_letters,
    is_truncated,
)

ENGLISH = [
    ("The cat sat on the mat.", "the cat was on the mat"),
    ("Positive", "Negative"),
    ("", "something"),
    ("", ""),
    ("First line.\nSecond line here.\n\nThird one", "Second line here.\nFirst lines.\nThird one\n"),
    ("It's running, isn't it? under_score x-ray 3.14", "It is run; isn't it: under score x ray 3 14"),
    ("“Curly quotes” – a dash… and an emoji ❤️ £5 m²", '"Curly quotes" - a dash... emoji £5 m2'),
    ("!!! ???", "..."),
]
OTHER_SCRIPTS = [
    "今天天气很好，我们去公园吧。",
    "今日は天気がいいので、公園に行きましょう。カタカナ",
    "Сегодня хорошая погода, идём в парк.",
    "الطقس جميل اليوم، هيا بنا إلى الحديقة ١٢٣",
    "आज मौसम अच्छा है, चलो पार्क चलते हैं।",
    "오늘 날씨가 좋으니 공원에 가자.",
    "วันนี้อากาศดีไปสวนกันเถอะ",
    "Ο καιρός είναι καλός",
    "Müller naïve café Straße",
    "می‌خواهم به پارک بروم",
]


def reference_scores(prediction: str, reference: str) -> tuple[float, ...]:
    scores = RougeScorer(list(ROUGE_NAMES)).score(reference, prediction)
    return tuple(scores[name].fmeasure for name in ROUGE_NAMES)


@pytest.mark.parametrize(("prediction", "reference"), ENGLISH)
def test_english_equals_rouge_score(prediction: str, reference: str) -> None:
    assert Rouge().score(prediction, reference) == reference_scores(prediction, reference)


def test_random_english_equals_rouge_score() -> None:
    words = ["the", "cats", "cat", "running", "run", "It's", "a", "b2", "x_y", "end.\n", "\n"]
    draw = random.Random(3)
    rouge = Rouge()
    for _ in range(200):
        first, second = (" ".join(draw.choices(words, k=draw.randint(0, 25))) for _ in range(2))
        assert rouge.score(first, second) == reference_scores(first, second)


def test_no_stemming() -> None:
    assert Rouge().score("running", "run") == (0, 0, 0, 0)


def test_values_by_hand() -> None:
    # prediction a b c d, reference a c b d e: 4 of 4 and 4 of 5 words; no pair; a b d in common order
    rouge1, rouge2, rouge_l, rouge_lsum = Rouge().score("a b c d", "a c b d e")
    assert rouge1 == pytest.approx(2 * 1 * 0.8 / 1.8)
    assert rouge2 == 0
    assert rouge_l == rouge_lsum == pytest.approx(2 * 0.75 * 0.6 / 1.35)


def test_lsum_splits_on_lines() -> None:
    _, _, rouge_l, rouge_lsum = Rouge().score("c d\na b", "a b\nc d")
    assert rouge_l == pytest.approx(0.5)
    assert rouge_lsum == 1.0


@pytest.mark.parametrize("text", OTHER_SCRIPTS)
def test_identical_texts_of_other_scripts_score_one(text: str) -> None:
    assert Rouge().score(text, text) == (1, 1, 1, 1)
    assert Rouge().score("entirely different words", text) == (0, 0, 0, 0)


def test_the_plain_tokenizer_fails_there() -> None:
    """The reason for the Unicode tokenizer; should rouge-score learn Chinese one day, it can go."""
    assert reference_scores(OTHER_SCRIPTS[0], OTHER_SCRIPTS[0]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("今天 ABC天气42", ["今", "天", "abc", "天", "气", "42"]),
        ("カ゛ガ", ["カ", "カ"[:0] + "ガ"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("ＡＢＣ１２", ["abc12"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ไปที่", ["ไ", "ป", "ที่"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("snake_case don’t", ["snake", "case", "don", "t"]),
        ("\u0301\u0301 ❤️ \n\t", []),
        ("오늘 날씨", ["오늘", "날씨"]),
    ],
)
def test_unicode_tokens(text: str, tokens: list[str]) -> None:
    assert UnicodeTokenizer().tokenize(text) == tokens


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_unicode_tokenizer_equals_the_plain_one_on_ascii(text: str) -> None:
    assert UnicodeTokenizer().tokenize(text) == DefaultTokenizer().tokenize(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_scores_between_zero_and_one(prediction: str, reference: str) -> None:
    assert all(0 <= value <= 1 for value in Rouge().score(prediction, reference))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain", False), ("“quoted” – … ❤️ £ m²", False), ("café", True), ("cafe\u0301", True), ("١", True), ("天", True)],
)
def test_beyond_ascii(text: str, expected: bool) -> None:
    assert has_non_ascii_letters(text) is expected


def test_huge_texts_stay_affordable() -> None:
    long = "word " * 400_000
    started = time.monotonic()
    scores = Rouge().score("word " * 100, long)
    assert time.monotonic() - started < 10
    assert 0 < scores[0] < 1
    assert is_truncated("word", long)
    assert not is_truncated("word", long[:MAX_TEXT_CHARACTERS])
