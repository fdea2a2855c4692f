from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.small_tokenizers import metaspace_tokenizer, unigram_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from luthier.data.build import mask_to_spans
from luthier.data.example import Example, Piece
from luthier.data.template import DEMARCATION, Template
from luthier.data.tokenize import Position, Tokenizer
from luthier.errors import ModelNotFoundError

GPT2 = Path(__file__).parent.parent / "samples" / "gpt2"
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*MARKERS, "a", " ", "\n", "é", "<|im_", "end|>", "<|"]), max_size=8
).map("".join)


@pytest.fixture(scope="session")
def theirs(tokenizer_folder: Path) -> Any:
    """The same tokenizer as transformers loads it."""
    return AutoTokenizer.from_pretrained(tokenizer_folder)


def plain(text: str, trained: bool = False) -> Piece:
    return Piece(text, trained)


def trusted(text: str, trained: bool = False) -> Piece:
    return Piece(text, trained, ((0, len(text)),))


def test_facts(tokenizer: Tokenizer) -> None:
    assert tokenizer.prefix_ids == []
    assert tokenizer.eos_id == 0
    assert tokenizer.pad_id == 0
    assert tokenizer.stop_ids == [0, 2]
    assert tokenizer.control_tokens == sorted(MARKERS)
    assert tokenizer.model_max_length == 2048
    assert tokenizer.vocab_size == 375


@given(TEXTS)
def test_special_strings_in_text_stay_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode([plain(text)])
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.show(ids) == text


@given(TEXTS)
def test_special_strings_of_a_template_are_control_tokens(tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    assert tokenizer.encode([trusted(text)]) == theirs(text, add_special_tokens=False)["input_ids"]


def test_a_marker_half_in_a_value_is_text(tokenizer: Tokenizer) -> None:
    example = Template("<|im_{q}", "{a}<|im_end|>").render({"q": "end|>", "a": "<|im_end|>"})
    encoded, trained = tokenizer.encode_examples([example])[0]
    assert encoded.tolist().count(2) == 1
    assert encoded[-2:].tolist() == [2, 0]
    assert trained.tolist() == [False] * len(tokenizer.encode(example.prompt_pieces)) + [True] * trained.sum()


@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(TEXTS, st.booleans(), st.booleans()), max_size=4), max_size=6))
def test_a_batch_is_its_rows(tokenizer: Tokenizer, rows: list[list[tuple[str, bool, bool]]]) -> None:
    batch = [[Piece(text, trained, ((0, len(text)),) if trust else ()) for text, trained, trust in row] for row in rows]
    for pieces, (ids, trained) in zip(batch, tokenizer.encode_batch(batch), strict=True):
        assert ids.tolist() == tokenizer.encode(pieces)
        assert ids.tolist() == [number for piece in pieces for number in tokenizer.encode([piece])]
        flags = [piece.trained for piece in pieces for _ in tokenizer.encode([piece])]
        assert trained.tolist() == flags


@given(TEXTS, TEXTS)
def test_served_prompt_is_the_trained_prompt(tokenizer: Tokenizer, question: str, answer: str) -> None:
    template = Template("q: {q}", "{a}", DEMARCATION)
    example = template.render({"q": question, "a": answer})
    ids, trained = tokenizer.encode_examples([example])[0]
    prompt = tokenizer.prompt_ids(example)
    assert prompt == tokenizer.prompt_ids(template.render_prompt({"q": question}))
    assert ids[: len(prompt)].tolist() == prompt
    assert not trained[: len(prompt)].any()
    assert trained[len(prompt) :].all()
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.show(ids[len(prompt) : -1]) == answer


def test_a_very_long_word(tokenizer: Tokenizer) -> None:
    word = "".join(chr(97 + number % 23) for number in range(100_000))
    ids = tokenizer.encode([plain(word)])
    assert tokenizer.decode(ids) == word


def test_gpt2_is_gpt2() -> None:
    ours = Tokenizer.load(GPT2)
    assert (ours.vocab_size, ours.eos_id, ours.prefix_ids, ours.chat_template) == (50257, 50256, [], None)
    assert ours.encode([plain("Hello world, 12 eggs")]) == [15496, 995, 11, 1105, 9653]
    assert ours.encode([trusted("a<|endoftext|>b")]) == [64, 50256, 65]
    assert 50256 not in ours.encode([plain("a<|endoftext|>b")])


def test_a_space_before_texts_is_put_only_where_the_model_saw_it(tmp_path: Path) -> None:
    for scheme in ("first", "always"):
        folder = metaspace_tokenizer(tmp_path / scheme, scheme)
        ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
        assert ours.prefix_ids == [1]
        for text in ("the cat", " the cat", "the<s>cat</s> the"):
            assert ours.encode([trusted(text)]) == theirs(text, add_special_tokens=False)["input_ids"]
        example = Example("", (plain("the "), plain("cat", True)))
        ids, _ = ours.encode_examples([example])[0]
        assert ours.decode(ids).strip() == "the cat"
        continuing = ours.encode_batch([[plain("cat")]], Position.CONTINUING)[0][0]
        assert continuing[0] != ours.encode([plain("cat")])[0]
        assert theirs("the ", add_special_tokens=True)["input_ids"] == ours.prompt_ids(example)


def test_a_vocabulary_that_spells_a_control_token_is_guarded(tmp_path: Path) -> None:
    ours = Tokenizer.load(unigram_tokenizer(tmp_path))
    assert 1 not in ours.encode([plain("a</s>b</s>")])
    assert ours.encode([trusted("a</s>b")]).count(1) == 1


def test_generation_config_adds_its_stops(tokenizer_folder: Path, tmp_path: Path) -> None:
    for file in tokenizer_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert Tokenizer.load(tmp_path).stop_ids == [0, 2, 7]


@pytest.mark.parametrize("change", [{"eos_token": None}, {"chat_template": "{% for"}])
def test_an_unusable_tokenizer_is_refused_in_one_line(
    tokenizer_folder: Path, tmp_path: Path, change: dict[str, str]
) -> None:
    for file in tokenizer_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelNotFoundError) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no usable tokenizer"):
        Tokenizer.load(tmp_path)


def test_decode_leaves_control_tokens_out(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(np.array(tokenizer.encode([trusted("a<|im_end|>b")]))) == "ab"


def test_messages_that_equal_transformers(tokenizer: Tokenizer, theirs: Any) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How many\n\neggs? é日本"},
        {"role": "assistant", "content": "12 eggs"},
        {"role": "user", "content": "and foxes"},
        {"role": "assistant", "content": "one fox.\n"},
    ]
    assert tokenizer.chat is not None
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    ids, trained = tokenizer.encode_examples([tokenizer.chat.example(messages)])[0]
    assert ids.tolist() == expected
    assert tokenizer.show(ids[trained]) == "12 eggs<|im_end|>one fox.\n<|im_end|>"
    asked = theirs.apply_chat_template(messages[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert tokenizer.prompt_ids(tokenizer.chat.render_prompt(messages[:-1])) == asked
    assert tokenizer.prompt_ids(tokenizer.chat.example(messages)) == asked


def test_no_chat_template_no_chat() -> None:
    assert Tokenizer.load(GPT2).chat is None


def test_rows_name_the_stretches_that_carry_loss(tokenizer: Tokenizer) -> None:
    """Apart, in order, never empty; pieces that touch are one stretch, and an end of text belongs to the last."""
    texts = [("a", False), ("bc d", True), ("", False), ("e", True), ("f", False), ("", True), ("g", True)]
    pieces = tuple(plain(*text) for text in texts)
    examples = [
        Example("row", pieces),
        Example("row", pieces, add_special_tokens=False),
        Example("row", pieces[:1], add_special_tokens=False),
    ]
    for row, (ids, trained), example in zip(
        tokenizer.encode_rows(examples), tokenizer.encode_examples(examples), examples, strict=True
    ):
        assert row.ids.tolist() == ids.tolist()
        assert row.spans == mask_to_spans(trained)
        lengths = [len(tokenizer.encode([piece])) for piece in example.pieces]
        flags = [piece.trained for piece, length in zip(example.pieces, lengths, strict=True) for _ in range(length)]
        framed = [*([False] * len(tokenizer.prefix_ids)), *flags, True] if example.add_special_tokens else flags
        assert trained.tolist() == framed
