"""What texts begin with may be tokenized once only where that gives the very ids of every whole text."""

from __future__ import annotations

import functools
import itertools
from functools import partial
from typing import Any

import pytest
from data.row_files import CORPUS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from luthier.data.example import Example, Piece
from luthier.data.shared_prefix import MIN_TEXTS, PATTERNS, SharedPrefix
from luthier.data.tokenize import Tokenizer as OwnTokenizer

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n"
)
WORDS = ["a", "Below", " is", "don't", "'ll", "''", " ", "  ", "\n", "\n\n", "\r\n", "\t", "###", ":", " (", "12", "@",
         "3456", "é", "e\u0301", "\u0301", "ß", "日本", "😀", "\u2003", "<tool", "_call>", "<tool_call>", "   ", "x_y",
         "-", ".", "'"]  # fmt: skip


def trained(pre: Any, normalizer: Any = None, added: tuple[AddedToken, ...] = ()) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre
    if normalizer:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    pairs = ("".join(pair) for pair in itertools.product(WORDS, WORDS))
    made.train_from_iterator([*CORPUS, ALPACA * 3, *pairs], trainer)
    made.add_tokens(list(added))
    made.encode_special_tokens = True
    return made


def by_pattern(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
SHARING = {
    "bytes": partial(trained, BYTES),
    "digits": partial(trained, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])),
    "normal form": partial(trained, BYTES, normalizers.NFC()),
    "added": partial(
        trained, BYTES, None, (AddedToken("<tool_call>"), AddedToken("   ", normalized=True), AddedToken("\n\n@"))
    ),
    **{f"pattern {number}": partial(trained, by_pattern(pattern)) for number, pattern in enumerate(sorted(PATTERNS))},
}


@functools.cache
def backend_of(make: partial[Tokenizer]) -> Tokenizer:
    return make()


texts = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


@pytest.mark.parametrize("name", SHARING)
@settings(max_examples=60, deadline=None)
@given(
    st.one_of(texts, texts.map(ALPACA.__add__), st.text(max_size=30)),
    st.lists(texts | st.text(max_size=5), min_size=1),
)
def test_the_ids_are_those_of_the_whole_texts(name: str, common: str, ends: list[str]) -> None:
    backend = backend_of(SHARING[name])
    whole = [common + end for end in itertools.islice(itertools.cycle(ends), MIN_TEXTS)]
    cut, ids = SharedPrefix(backend).find(whole)
    for text in whole[: len(ends)]:
        expected = backend.encode(text, add_special_tokens=False).ids
        assert [*ids, *backend.encode(text[cut:], add_special_tokens=False).ids] == expected


@pytest.mark.parametrize("name", SHARING)
def test_most_of_a_template_is_shared(name: str) -> None:
    cut, ids = SharedPrefix(backend_of(SHARING[name])).find([f"{ALPACA}{number}" for number in range(MIN_TEXTS)])
    assert cut >= len(ALPACA) - 20
    assert ids


SENTENCES = pre_tokenizers.Metaspace()
REFUSED = {
    "a space put in front": partial(trained, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "words that merge": partial(trained, SENTENCES),
    "one word": partial(trained, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "another pattern": partial(trained, by_pattern(r"(?=.*x)\w+|\W+")),
    "another normal form": partial(trained, BYTES, normalizers.NFKC()),
    "a token that takes the space before it": partial(trained, BYTES, None, (AddedToken("<x>", lstrip=True),)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_shared_where_it_is_not_proved(name: str) -> None:
    assert SharedPrefix(backend_of(REFUSED[name])).find([f"{ALPACA}{number}" for number in range(MIN_TEXTS)]) == (0, [])


def test_nothing_is_shared_of_a_template_with_an_added_token_in_it() -> None:
    """It is found before words are: "'ll" behind one is a word, which it is not behind ">"."""
    backend = backend_of(SHARING["added"])
    assert SharedPrefix(backend).find(["<tool_call>'llaBelow, and so on, and so on"] * MIN_TEXTS) == (0, [])


def test_few_texts_share_nothing() -> None:
    assert SharedPrefix(backend_of(SHARING["bytes"])).find([ALPACA] * (MIN_TEXTS - 1)) == (0, [])


def test_rows_of_a_batch_have_the_ids_of_rows_alone(tokenizer: OwnTokenizer) -> None:
    rows = [
        Example(str(number), (Piece(f"{ALPACA}{text}", False), Piece(f"answer {number} <|im_end|>", True)))
        for number, text in enumerate([*WORDS, "<|im_start|>x", ""])
    ]
    together = tokenizer.encode_rows(rows)
    assert len(rows) >= MIN_TEXTS
    for row, found in zip(rows, together, strict=True):
        (alone,) = tokenizer.encode_rows([row])
        assert found.ids.tolist() == alone.ids.tolist()
        assert found.spans == alone.spans
    assert tokenizer._shared.find([row.pieces[0].text for row in rows])[0]
