"""The beginning that the texts of a batch share, tokenized once: a template's words stand in front of every row.

    ids(P + x)  =  ids(P[:cut]) + ids(P[cut:] + x)        P is what all texts begin with

This holds where a tokenizer cuts a text into words by a regular expression, one match after the other, and encodes each
word by itself (byte-level BPE), if no match that begins before the cut can look behind P. The patterns listed here look
at the word, the white space behind it and three more characters at most; so P must go on behind the cut for MARGIN
characters and have a character there that is no white space. For every other tokenizer (SentencePiece merges across
words) nothing is shared. It knows tokenizers and texts, nothing of rows. Its plain twin is the tokenizer itself, whole
text by whole text (tests/data/test_shared_beginning.py).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import models

FEWEST = 16  # texts for which looking for a beginning pays
MARGIN = 8  # characters
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = frozenset({
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,  # cl100k, Llama 3
    _CONTRACTIONS + _WORDS + r"\p{N}" + _REST,  # Qwen 2
})  # fmt: skip


class SharedBeginning:
    """Finds the beginnings that texts share, for one tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
        self._added = [token.content for token in added]  # special ones are plain text here
        self._normalised = backend.normalizer is not None
        self.possible = (
            _stored(backend.normalizer) in (None, {"type": "NFC"})
            and _cuts_into_words(_stored(backend.pre_tokenizer))
            and isinstance(backend.model, models.BPE)
            and not backend.model.dropout
            and not any(token.lstrip or token.rstrip or token.single_word for token in added)
        )
        self._found: dict[str, tuple[int, list[int]]] = {}

    def of(self, texts: Sequence[str]) -> tuple[int, list[int]]:
        """How many characters of each text are tokenized already, and their ids; 0 and none where nothing is shared."""
        if not self.possible or len(texts) < FEWEST:
            return 0, []
        common = _both_begin_with(min(texts), max(texts))
        found = self._found.get(common)
        if found is None:
            found = self._cut(common)
            self._found = {common: found}  # a data set has one template
        return found

    def _cut(self, common: str) -> tuple[int, list[int]]:
        if self._normalised and not common.isascii():
            return 0, []
        common = self._without_added(common)
        words = self._backend.pre_tokenizer.pre_tokenize_str(common) if common else []
        for _, (cut, _) in reversed(words):
            rest = common[cut:]
            if cut and len(rest) >= MARGIN and rest[:-1].strip():
                whole = self._backend.encode(common, add_special_tokens=False)  # the end of a text cuts white space
                return cut, [number for number, (_, end) in zip(whole.ids, whole.offsets, strict=True) if end <= cut]
        return 0, []

    def _without_added(self, common: str) -> str:
        """The text up to where an added token might begin, which is found before words are; none if it holds a whole
        one.
        """
        if any(token in common for token in self._added):
            return ""
        begun = (at for token in self._added for at in range(1, len(token)) if common.endswith(token[:at]))
        return common[: len(common) - max(begun, default=0)]


def _stored(step: Any) -> Any:
    """A part of a tokenizer as its file has it; the whole file would be as large as the vocabulary."""
    return None if step is None else json.loads(step.__getstate__())


def _both_begin_with(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in same)]


def _cuts_into_words(step: Any) -> bool:
    """Whether a pre-tokenizer, as stored, is made of steps that look at a word and little behind it."""
    if step is None:
        return False
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    patterned = [each for each in steps if each["type"] == "Split" or each.get("use_regex", True)]
    return all(map(_local, steps)) and any(each["type"] in ("Split", "ByteLevel") for each in patterned)


def _local(step: Any) -> bool:
    if step["type"] == "Split":
        return step["pattern"].get("Regex") in PATTERNS and step["behavior"] == "Isolated" and not step["invert"]
    return step["type"] == "Digits" or (step["type"] == "ByteLevel" and not step["add_prefix_space"])
