"""Answers at the end of a text: what a regular expression finds, and JSON values.

answer    the last match of `answer_pattern`, of its first group if it has one: "... #### 1,200" -> "1,200"
JSON      the object or array with which the text ends, also in a ``` fence
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_STARTS = 64
"""Positions of "{" and "[" at which a JSON value is tried."""
_FENCE = re.compile(r"\s*```\s*$")
_OPENING = re.compile(r"[{\[]")


def find_answer(text: str, pattern: str) -> str | None:
    """Return the last match of `pattern`, of its first group if it has one; None if there is none."""
    answer = None
    for match in re.finditer(pattern, text):
        answer = match[1] if match.re.groups else match[0]
    return answer.strip() if answer and answer.strip() else None


def answers_match(prediction: str, reference: str, pattern: str) -> bool:
    """Whether both texts have the same answer: numbers by value (1,200 = 1200.0), other texts as they are."""
    answer, expected = find_answer(prediction, pattern), find_answer(reference, pattern)
    if answer is None or expected is None:
        return False
    number, expected_number = _number(answer), _number(expected)
    return answer == expected if number is None or expected_number is None else number == expected_number


def ends_in_json(text: str) -> bool:
    """Whether the text ends in a JSON object or array."""
    return _final_json(text) is not None


def json_match(prediction: str, reference: str) -> bool:
    """Whether both texts end in equal JSON values; the order of keys and white space do not count."""
    value, expected = _final_json(prediction), _final_json(reference)
    return value is not None and expected is not None and _is_equal(value, expected)


def _number(text: str) -> Decimal | None:
    plain = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text.strip().lstrip("$€£").rstrip(".%"))
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _final_json(text: str) -> Any:
    """The JSON object or array that ends the text; None if there is none."""
    text = _FENCE.sub("", text).rstrip()
    if text[-1:] not in ("}", "]"):
        return None
    for number, match in enumerate(_OPENING.finditer(text)):
        if number == MAX_STARTS:
            break
        try:
            return json.loads(text[match.start() :], parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            continue
    return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_equal(value: Any, other: Any) -> bool:
    """Equality of JSON values: numbers by value, and true is not 1."""
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_is_equal(value[key], other[key]) for key in value)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_is_equal, value, other))
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
