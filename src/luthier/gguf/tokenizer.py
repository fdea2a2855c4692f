"""Builds a tokenizer in Hugging Face layout from a GGUF file's metadata, with the ids that llama.cpp gives.

A GGUF file holds tokens, merges or scores, and a name for the pre-tokenizer instead of its patterns; the table of
names is pre_tokenizers.yaml. transformers 5.23's own reader of these fields gives other ids for most vocabularies: it
knows few of the names, splits special tokens outside the byte alphabet, and reads SentencePiece's as Metaspace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from luthier.catalog.gguf_header import GgufHeader
from luthier.errors import ModelNotFoundError, did_you_mean
from luthier.jobfolder import write_json

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "▁"
_ROLES = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A row of pre_tokenizers.yaml: its patterns and llama.cpp's defaults for the vocabularies that use it."""

    split: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


@functools.cache
def known_pre_tokenizers() -> Mapping[str, PreTokenizer]:
    """The pre-tokenizers by every name that tokenizer.ggml.pre may have."""
    rows = yaml.safe_load((resources.files("luthier.gguf") / "pre_tokenizers.yaml").read_text("utf-8"))
    return {
        name: PreTokenizer(tuple(row["split"]), row.get("ignore_merges", False), row.get("add_bos", False))
        for row in rows
        for name in row["names"]
    }


def write_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, with the chat template, into `folder`.

    ModelNotFoundError for a vocabulary of an unknown kind, an unknown pre-tokenizer, or missing fields.
    """
    build = _BUILDERS.get(str(_field(header, "model")))
    if build is None:
        raise ModelNotFoundError(
            f"{header.file}: tokenizer.ggml.model is {_field(header, 'model')!r}; Luthier reads {', '.join(_BUILDERS)}"
        )
    tokens = _list(header, "tokens")
    backend, (adds_bos, adds_eos) = build(header, tokens)
    _add_tokens(header, backend, tokens)
    roles = {role: tokens[number] for role, name in _ROLES.items() if (number := _id(header, name, tokens)) is not None}
    adds_bos = bool(header.metadata.get("tokenizer.ggml.add_bos_token", adds_bos)) and "bos_token" in roles
    adds_eos = bool(header.metadata.get("tokenizer.ggml.add_eos_token", adds_eos)) and "eos_token" in roles
    _add_frame(backend, [roles["bos_token"]] if adds_bos else [], [roles["eos_token"]] if adds_eos else [])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "clean_up_tokenization_spaces": False,
    }
    if context := header.key("context_length"):
        config["model_max_length"] = context
    if template := header.metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    write_json(folder / "tokenizer_config.json", config)


def _byte_level(header: GgufHeader, tokens: list[str]) -> tuple[Tokenizer, tuple[bool, bool]]:
    """GPT-2's kind: BPE on the bytes of pieces that a named pre-tokenizer splits."""
    name = _field(header, "pre")
    known = known_pre_tokenizers()
    if name is None:
        raise ModelNotFoundError(
            f"{header.file}: tokenizer.ggml.pre is missing, so its token ids cannot be known; convert the model again "
            "with a current llama.cpp, or name it: gguf-new-metadata --pre-tokenizer NAME IN OUT"
        )
    if name not in known:
        raise ModelNotFoundError(
            f"{header.file}: unknown pre-tokenizer {name!r} in tokenizer.ggml.pre{did_you_mean(str(name), known)}; "
            f"known: {', '.join(sorted(known))}"
        )
    row = known[name]
    merges = [_pair(merge) for merge in _list(header, "merges")]
    backend = Tokenizer(models.BPE(_vocabulary(tokens), merges, ignore_merges=row.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in row.split]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, (row.add_bos, False)


def _sentencepiece(header: GgufHeader, tokens: list[str]) -> tuple[Tokenizer, tuple[bool, bool]]:
    """SentencePiece's BPE: pairs merged in the order of the scores (or of stored merges), bytes for unknown letters."""
    stored = header.metadata.get("tokenizer.ggml.merges")
    merges = [_pair(merge) for merge in stored] if stored else _merges_by_score(tokens, _list(header, "scores"))
    unknown = _id(header, "unknown_token_id", tokens)
    backend = Tokenizer(
        models.BPE(
            _vocabulary(tokens), merges, byte_fallback=True, fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )  # fmt: skip
    has_prefix = bool(header.metadata.get("tokenizer.ggml.add_space_prefix", not stored))
    spaces: list[Any] = [normalizers.Prepend(_SPACE)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return backend, (True, False)


def _unigram(header: GgufHeader, tokens: list[str]) -> tuple[Tokenizer, tuple[bool, bool]]:
    """SentencePiece's unigram model, T5's kind."""
    scores = _list(header, "scores")
    unknown = _id(header, "unknown_token_id", tokens)
    backend = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unknown, False))
    steps: list[Any] = []
    if charsmap := header.metadata.get("tokenizer.ggml.precompiled_charsmap"):
        steps.append(normalizers.Precompiled(bytes(value & 0xFF for value in charsmap)))
    if header.metadata.get("tokenizer.ggml.remove_extra_whitespaces", True):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    prefix = "always" if header.metadata.get("tokenizer.ggml.add_space_prefix", True) else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=prefix)
    backend.decoder = decoders.Metaspace(_SPACE, prepend_scheme=prefix)
    return backend, (False, True)


_BUILDERS: dict[str, Callable[[GgufHeader, list[str]], tuple[Tokenizer, tuple[bool, bool]]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "gemma4": _sentencepiece,
    "t5": _unigram,
}
"""tokenizer.ggml.model -> builder of the tokenizer with llama.cpp's defaults of (add_bos_token, add_eos_token)."""


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _pair(merge: str) -> tuple[str, str]:
    """A merge's two sides; the first may itself begin with a space."""
    first, _, second = merge[1:].partition(" ")
    return merge[:1] + first, second


def _merges_by_score(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens whose concatenation is a token, best score first: SentencePiece's order."""
    known = _vocabulary(tokens)

    def pairs() -> Iterator[tuple[float, int, int, str, str]]:
        for token, score in zip(tokens, scores, strict=True):
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in known and right in known:
                    yield -score, known[left], known[right], left, right

    return [(left, right) for *_, left, right in sorted(pairs())]


def _add_tokens(header: GgufHeader, backend: Tokenizer, tokens: Sequence[str]) -> None:
    """Mark control tokens as special, and user-defined ones as found whole in any text."""
    kinds = header.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise ModelNotFoundError(f"{header.file}: {len(tokens)} tokens, but {len(kinds)} token types")
    strips = header.architecture == "phi3"  # llama.cpp knows by the model's name that Phi-3's tokens take whitespace
    unstripped = ("<unk>", "<s>", "<|endoftext|>")
    pairs = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if token]
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=strips and token not in unstripped)
            for token, kind in pairs
            if kind in (_CONTROL, _UNKNOWN)
        ]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in pairs if kind == _USER_DEFINED])
    if backend.get_vocab_size() != len(tokens):
        raise ModelNotFoundError(
            f"{header.file}: its {len(tokens)} tokens are not all different; the file is damaged, convert it again"
        )


def _add_frame(backend: Tokenizer, before: list[str], after: list[str]) -> None:
    """Surround every text with `before` and `after`."""
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys([*before, *after])],
        )


def _field(header: GgufHeader, name: str) -> Any:
    return header.metadata.get(f"tokenizer.ggml.{name}")


def _list(header: GgufHeader, name: str) -> list[Any]:
    value = _field(header, name)
    if not isinstance(value, list) or not value:
        raise ModelNotFoundError(f"{header.file}: tokenizer.ggml.{name} is missing from its metadata")
    return value


def _id(header: GgufHeader, name: str, tokens: Sequence[str]) -> int | None:
    number: int | None = _field(header, name)
    if number is None or 0 <= number < len(tokens):
        return number
    raise ModelNotFoundError(f"{header.file}: tokenizer.ggml.{name} is {number}, and there are {len(tokens)} tokens")
