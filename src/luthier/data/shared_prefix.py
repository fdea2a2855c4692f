"""Tokenizes the common prefix of a batch's texts once: a template starts every row with the same words.

    ids(P + x)  =  ids(P[:cut]) + ids(P[cut:] + x)        P is the common prefix

This holds where a tokenizer splits text into words by a regular expression and encodes each word separately
(byte-level BPE), if no match that starts before the cut can look beyond P. The PATTERNS look at a word, the following
white space and at most three more characters; so P must continue after the cut for MARGIN characters, one of them not
white space. Other tokenizers (SentencePiece merges across words) share nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import models

MIN_TEXTS = 16  # fewer are not worth the search
MARGIN = 8  # characters
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = frozenset({
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,  # cl100k, Llama 3
    _CONTRACTIONS + _WORDS + r"\p{N}" + _REST,  # Qwen 2
})  # fmt: skip


class SharedPrefix:
    """Finds and tokenizes common prefixes for one tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
        self._added = [token.content for token in added]  # special ones are encoded as text here
        self._normalised = backend.normalizer is not None
        self.is_supported = (
            _state(backend.normalizer) in (None, {"type": "NFC"})
            and _splits_into_words(_state(backend.pre_tokenizer))
            and isinstance(backend.model, models.BPE)
            and not backend.model.dropout
            and not any(token.lstrip or token.rstrip or token.single_word for token in added)
        )
        self._cache: dict[str, tuple[int, list[int]]] = {}

    def find(self, texts: Sequence[str]) -> tuple[int, list[int]]:
        """Return the length of the shared prefix in characters, and its ids; (0, []) where nothing can be shared."""
        if not self.is_supported or len(texts) < MIN_TEXTS:
            return 0, []
        common = _common_prefix(min(texts), max(texts))
        if common not in self._cache:
            self._cache = {common: self._encode_prefix(common)}  # a data set has one template
        return self._cache[common]

    def _encode_prefix(self, common: str) -> tuple[int, list[int]]:
        if self._normalised and not common.isascii():
            return 0, []
        common = self._without_added_tokens(common)
        words = self._backend.pre_tokenizer.pre_tokenize_str(common) if common else []
        for _, (cut, _) in reversed(words):
            rest = common[cut:]
            if cut and len(rest) >= MARGIN and rest[:-1].strip():
                whole = self._backend.encode(common, add_special_tokens=False)  # the end of a text cuts white space
                return cut, [number for number, (_, end) in zip(whole.ids, whole.offsets, strict=True) if end <= cut]
        return 0, []

    def _without_added_tokens(self, common: str) -> str:
        """Return the text up to where an added token might start, as added tokens are matched before words; "" if the
        text contains one.
        """
        if any(token in common for token in self._added):
            return ""
        partial = (at for token in self._added for at in range(1, len(token)) if common.endswith(token[:at]))
        return common[: len(common) - max(partial, default=0)]


def _state(step: Any) -> Any:
    """Return one component of a tokenizer as stored; the whole file is as large as the vocabulary."""
    return None if step is None else json.loads(step.__getstate__())


def _common_prefix(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in same)]


def _splits_into_words(step: Any) -> bool:
    """Whether all steps of a stored pre-tokenizer look at a word and at most a few characters beyond it."""
    if step is None:
        return False
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    patterned = [part for part in steps if part["type"] == "Split" or part.get("use_regex", True)]
    return all(map(_is_local, steps)) and any(part["type"] in ("Split", "ByteLevel") for part in patterned)


def _is_local(step: Any) -> bool:
    if step["type"] == "Split":
        return step["pattern"].get("Regex") in PATTERNS and step["behavior"] == "Isolated" and not step["invert"]
    return step["type"] == "Digits" or (step["type"] == "ByteLevel" and not step["add_prefix_space"])
