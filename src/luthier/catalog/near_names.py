"""The known model name that is closest to a misspelt one.

Names are compared without case and punctuation. A repository ORG/NAME is compared in its parts: NAME counts three times
as much as ORG, because people know the name of a model better than that of its publisher; of equally close ones, the
one with the same digits (version, size) comes first. It reads no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

from luthier.errors import did_you_mean

NAME_WEIGHT = 0.75
MIN_NAME, MIN_TOTAL = 0.72, 0.66
"""Least similarity, 0 to 1, of NAME and of both parts together."""
MIN_BEGINNING = 6
"""Characters from which on the beginning of a NAME is close to it, however much was left out."""
MAX_NAME = 200  # characters; the Hub's names have at most 96 on each side
_HUB_ADDRESS = re.compile(r"(https?:)?(//)?(www\.)?(huggingface\.co|hf\.co|hf:)/*", re.IGNORECASE)
_REVISION = re.compile(r"(/(tree|blob|resolve)/[^/]*)?/*$")
_NOT_WORDS = re.compile(r"[\W_]+")
_NOT_DIGITS = re.compile(r"\D+")


def plain_name(name: str) -> str:
    """Return `name` without the Hub's address, a revision's path, slashes at its ends or backslashes."""
    text = _HUB_ADDRESS.sub("", name.strip().replace("\\", "/"), count=1)
    return re.sub(r"/+", "/", _REVISION.sub("", text)).strip("/")


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest of `known`, or an empty string."""
    names = list(known)
    text = plain_name(name)
    if len(text) > MAX_NAME:
        return ""
    if "/" not in text:
        return did_you_mean(text, names)
    best = max(((_similarity(text, candidate), candidate) for candidate in names if "/" in candidate),
               default=(0.0, ""))  # fmt: skip
    return f"; did you mean {best[1]!r}?" if best[0] > 0 else ""


def _similarity(name: str, candidate: str) -> float:
    """0 if the two are not close; the higher, the closer."""
    (owner, own), (other_owner, other) = (_parts(text) for text in (name, candidate))
    names, owners = _ratio(own, other), _ratio(owner, other_owner)
    if len(own) >= MIN_BEGINNING and other.startswith(own):
        names = 0.9 + names / 10
    total = NAME_WEIGHT * names + (1 - NAME_WEIGHT) * owners
    if own != other and (names < MIN_NAME or total < MIN_TOTAL):
        return 0.0
    same_digits = _NOT_DIGITS.sub("", own) == _NOT_DIGITS.sub("", other)
    return total + 0.05 * same_digits


def _parts(name: str) -> tuple[str, str]:
    owner, _, own = name.casefold().rpartition("/")
    return _NOT_WORDS.sub("", owner), _NOT_WORDS.sub("", own)


def _ratio(text: str, other: str) -> float:
    return SequenceMatcher(None, text, other, autojunk=False).ratio()
