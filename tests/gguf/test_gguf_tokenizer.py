"""Tokenizers rebuilt from GGUF metadata give llama.cpp's ids: llama_cpp_ids.json was made by llama.cpp itself, for a
vocabulary whose merges cross every boundary that a pre-tokenizer may draw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from luthier.catalog.gguf_header import GgufHeader
from luthier.data.tokenize import Tokenizer as EngineTokenizer
from luthier.errors import ModelNotFoundError
from luthier.gguf.tokenizer import known_pre_tokenizers, write_tokenizer

STORED = json.loads((Path(__file__).parent / "llama_cpp_ids.json").read_text("utf-8"))
TEXTS: list[str] = STORED["texts"]
BYTE_LEVEL: dict[str, Any] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": STORED["tokens"],
    "tokenizer.ggml.merges": STORED["merges"],
    "tokenizer.ggml.token_type": [3, 3] + [1] * (len(STORED["tokens"]) - 2),
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
# llama.cpp writes \p{Lu} as "a letter that is not a-z", and takes no combining marks into words; the publisher's
# pattern is the one that the model was trained with. Its \s knows other spaces than Oniguruma's.
DEPARTS = {
    **dict.fromkeys(["tekken", "gpt-4o"], ("Größe", "สวัสดี", "नमस्ते", "e\u0301te")),
    **dict.fromkeys(["deepseek-llm", "deepseek-coder"], ("a\u00a0b",)),
}


def build(folder: Path, metadata: dict[str, Any]) -> Tokenizer:
    write_tokenizer(GgufHeader(folder / "m.gguf", metadata, (), 0), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def refusal(folder: Path, metadata: dict[str, Any]) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        build(folder, metadata)
    return str(caught.value).removeprefix(f"{folder / 'm.gguf'}: ")


@pytest.mark.parametrize("row", STORED["pre_tokenizers"], ids=lambda row: row["names"][0])
def test_ids_equal_llama_cpps(tmp_path: Path, row: dict[str, Any]) -> None:
    for name in row["names"]:
        backend = build(tmp_path, BYTE_LEVEL | {"tokenizer.ggml.pre": name})
        expected = dict(zip(TEXTS, row["ids"], strict=True))
        other = {text for text in TEXTS if backend.encode(text, add_special_tokens=False).ids != expected[text]}
        assert other == {text for text in TEXTS if text.startswith(DEPARTS.get(row["names"][0], ("\0",)))}
        assert all(backend.decode(backend.encode(text).ids) == text for text in TEXTS)
        assert (backend.encode("x").ids[0] == 0) is row["add_bos"]


def test_every_name_is_proved() -> None:
    assert known_pre_tokenizers().keys() == {name for row in STORED["pre_tokenizers"] for name in row["names"]}


def test_patterns_equal_the_publishers_in_transformers() -> None:
    """transformers took these from the publishers' tokenizer.json."""
    known = known_pre_tokenizers()
    compared = {name: [known[name].split] for name in GGUF_PRE_TOKENIZER_SPLITS if name in known}
    assert compared == {name: [(GGUF_PRE_TOKENIZER_SPLITS[name],)] for name in compared}
    assert {"llama-bpe", "tekken", "qwen2", "qwen35", "gpt-4o"} <= compared.keys()


def test_smollm_splits_digits_and_newlines(tmp_path: Path) -> None:
    backend = build(tmp_path, BYTE_LEVEL)
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("\n\n1. x 42")] == [
        "ĊĊ", "1", ".", "Ġx", "Ġ", "4", "2",
    ]  # fmt: skip


def test_an_unknown_pre_tokenizer_lists_the_known(tmp_path: Path) -> None:
    message = refusal(tmp_path, BYTE_LEVEL | {"tokenizer.ggml.pre": "smolm"})
    assert message.startswith(
        "unknown pre-tokenizer 'smolm' in tokenizer.ggml.pre; did you mean 'smollm'?; known: a.x-4.0"
    )
    assert all(name in message for name in known_pre_tokenizers())


def test_no_pre_tokenizer(tmp_path: Path) -> None:
    metadata = {name: value for name, value in BYTE_LEVEL.items() if name != "tokenizer.ggml.pre"}
    assert refusal(tmp_path, metadata).startswith("tokenizer.ggml.pre is missing, so its token ids cannot be known")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'; Luthier reads gpt2, llama, gemma4, t5"),
        ({"tokenizer.ggml.merges": []}, "tokenizer.ggml.merges is missing from its metadata"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "tokenizer.ggml.eos_token_id is 9999, and there are 1314 tokens"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "1314 tokens, but 2 token types"),
        (
            {"tokenizer.ggml.tokens": [*STORED["tokens"][:-1], STORED["tokens"][5]]},
            "its 1314 tokens are not all different; the file is damaged, convert it again",
        ),
    ],
)
def test_metadata_that_makes_no_tokenizer(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if "tokenizer.ggml.tokens" in changes:  # a merge needs its token
        changes = changes | {"tokenizer.ggml.merges": STORED["merges"][:10]}
    assert refusal(tmp_path, BYTE_LEVEL | changes) == message


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ({}, [], []),
        ({"add_bos_token": True}, [0], []),
        ({"add_eos_token": True}, [], [1]),
        ({"add_bos_token": True, "add_eos_token": True}, [0], [1]),
        ({"pre": "llama-bpe"}, [0], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
    ],
)
def test_bos_and_eos(tmp_path: Path, flags: dict[str, Any], before: list[int], after: list[int]) -> None:
    backend = build(tmp_path, BYTE_LEVEL | {f"tokenizer.ggml.{name}": value for name, value in flags.items()})
    inner = backend.encode("one two", add_special_tokens=False).ids
    assert backend.encode("one two").ids == [*before, *inner, *after]
    loaded = EngineTokenizer.load(tmp_path)
    assert (loaded.prefix_ids, loaded.eos_id) == (before, 1)


def test_control_and_user_defined_tokens_stay_whole(tmp_path: Path) -> None:
    tokens = [*STORED["tokens"], "<｜begin▁of▁sentence｜>", "<think>", "[x]"]
    kinds = [*BYTE_LEVEL["tokenizer.ggml.token_type"], 3, 4, 4]
    backend = build(tmp_path, BYTE_LEVEL | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    first = len(STORED["tokens"])
    text = "a<｜begin▁of▁sentence｜><think>[x]b"
    ids = backend.encode(text).ids
    assert ids[1:-1] == [first, first + 1, first + 2]
    assert backend.get_vocab_size() == len(tokens)
    assert backend.decode(ids) == "a<think>[x]b"  # without special tokens


SENTENCEPIECE: dict[str, Any] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
                              "▁", "a", "b", "c", "▁a", "ab", "bc", "▁ab", "▁▁"],
    "tokenizer.ggml.scores": [0.0] * 259 + [-90.0, -91.0, -92.0, -93.0, -5.0, -3.0, -2.0, -1.0, -4.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 9,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "prefix", "pieces"),
    [
        ("abc", True, ["▁a", "bc"]),  # bc has a better score than ab, and ▁ab needs ab
        ("ab", True, ["▁ab"]),
        (" ab", True, ["▁", "▁ab"]),  # ab first, then ▁ab, which has a better score than ▁▁
        ("ab", False, ["ab"]),
        ("é", True, ["▁", "<0xC3>", "<0xA9>"]),
        ("a\nb", False, ["a", "<0x0A>", "b"]),
    ],
)
def test_sentencepiece_merges_by_score(tmp_path: Path, text: str, prefix: bool, pieces: list[str]) -> None:
    backend = build(tmp_path, SENTENCEPIECE | {"tokenizer.ggml.add_space_prefix": prefix})
    assert backend.encode(text, add_special_tokens=False).tokens == pieces
    assert backend.encode(text).ids[0] == 1  # SentencePiece's kind begins with BOS unless the file says otherwise
    assert backend.decode(backend.encode(text).ids) == text


def test_unigram_takes_the_best_score_in_total(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": "t5",
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", "▁", "a", "b", "ab", "▁a", "▁ab"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -4.0, -3.0, -3.0, -3.5, -3.2, -9.0],
        "tokenizer.ggml.token_type": [3, 3, 2, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 2,
    }
    backend = build(tmp_path, metadata)
    assert backend.encode("ab").tokens == ["▁a", "b", "</s>"]
    assert backend.encode(" ab   ab ").tokens == ["▁a", "b", "▁a", "b", "</s>"]
    assert backend.decode(backend.encode("ab ab").ids) == "ab ab"


def test_the_chat_template_and_roles_are_kept(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|bos|>{{ m['content'] }}<|eos|>{% endfor %}"
    build(tmp_path, BYTE_LEVEL | {"tokenizer.chat_template": template, "llama.context_length": 2048})
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert (config["chat_template"], config["model_max_length"]) == (template, 2048)
    assert (config["bos_token"], config["eos_token"], "pad_token" in config) == ("<|bos|>", "<|eos|>", False)
