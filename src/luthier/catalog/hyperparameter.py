"""One hyperparameter: its name, type, range and default, and how its value is parsed from text.

Values are strings (SageMaker's API, `--set name=value`) or YAML scalars before parsing. A string may hold JSON again
(`"\\"5\\""`, `null`, `["q_proj"]`), as the SageMaker SDK's framework estimators send it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from luthier.errors import SettingError

Value = bool | int | float | str | None
Kind = Literal["int", "float", "bool", "choice", "text", "optional_int", "pattern", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One row of the table.

    Bounds are inclusive unless `exclusive_minimum` or `exclusive_maximum`. `sentinel` is a value allowed outside of
    the bounds; "None" parses to it. `bounds_source` names the origin of bounds that are not the table's. `choices` are
    text, also those of a whole number.

    A `fixed` row is a name that SageMaker's clients send and that has no effect here: its `choices` are the clients'
    default values, and any other value is refused with the reason in `help`.
    """

    name: str
    type: Kind
    default: Value
    group: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    sentinel: int | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    bounds_source: str = ""

    @property
    def expected(self) -> str:
        """The type and range of a value, in words."""
        if self.type == "bool":
            return "True or False"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.type in ("text", "pattern"):
            return "text" if self.type == "text" else "a regular expression of Python"
        words = "a whole number" if self.type in ("int", "optional_int") else "a number"
        if self.minimum is not None:
            words += f" {'above' if self.exclusive_minimum else 'of at least'} {_format(self.minimum)}"
        if self.maximum is not None:
            words += " and" if self.minimum is not None else ""
            words += f" {'below' if self.exclusive_maximum else 'at most'} {_format(self.maximum)}"
        words += f" ({self.bounds_source})" if self.bounds_source else ""
        words += f", or {self.sentinel}" if self.sentinel is not None else ""
        return words + (", or None" if self.type == "optional_int" else "")

    def with_bounds(self, bounds: Mapping[str, float], source: str) -> Hyperparameter:
        """Return the row with its bounds narrowed to `bounds` ("minimum", "maximum"), which come from `source`."""
        low, high = bounds.get("minimum"), bounds.get("maximum")
        raised = low is not None and (self.minimum is None or low > self.minimum)
        lowered = high is not None and (self.maximum is None or high < self.maximum)
        return replace(
            self,
            minimum=low if raised else self.minimum,
            maximum=high if lowered else self.maximum,
            exclusive_minimum=self.exclusive_minimum and not raised,
            exclusive_maximum=self.exclusive_maximum and not lowered,
            bounds_source=source if raised or lowered else self.bounds_source,
        )

    def parse(self, raw: Any) -> Value:
        """Return the typed value; SettingError names the hyperparameter and what was expected."""
        unwrapped = _unwrap(raw)
        text = ",".join(unwrapped) if isinstance(unwrapped, list) else unwrapped
        is_bad_list = isinstance(unwrapped, list) and self.type != "text"
        value: Value | object = _BAD if is_bad_list else _PARSERS[self.type](self, text)
        if value is _BAD or not self._in_range(value):
            shown = text if text.isprintable() else repr(text)
            if self.type == "fixed":
                raise SettingError(f"{self.name}={shown}: {self.help}; leave it at {self.default}")
            raise SettingError(f"{self.name}={shown}: expected {self.expected}")
        return cast(Value, value)

    def _in_range(self, value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or value == self.sentinel:
            return True
        if self.choices:
            return str(value) in self.choices
        low = self.minimum is None or value > self.minimum or (value == self.minimum and not self.exclusive_minimum)
        high = self.maximum is None or value < self.maximum or (value == self.maximum and not self.exclusive_maximum)
        return math.isfinite(value) and low and high


def _format(number: float) -> str:
    return f"{number:.10g}"


def _unwrap(raw: Any) -> str | list[str]:
    """Return the text of a value, or the texts of a list, from its JSON or Python spelling."""
    if isinstance(raw, list | tuple):
        return [str(item) for item in raw]
    text = str(raw).strip()
    if text[:1] == text[-1:] == '"' and len(text) > 1:
        text = str(_load_json(text, text)).strip()
    if text[:1] == "[" and text[-1:] == "]":
        items = _load_json(text, None) or _load_json(text.replace("'", '"'), None)
        if isinstance(items, list):
            return [str(item) for item in items]
    return "None" if text == "null" else text


def _load_json(text: str, default: Any) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return default


_BAD = object()
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _whole(row: Hyperparameter, text: str) -> Any:
    if text.lower() == "none" and row.sentinel is not None:
        return row.sentinel
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else _BAD


def _optional_whole(row: Hyperparameter, text: str) -> Any:
    return None if text.lower() == "none" else _whole(row, text)


def _number(row: Hyperparameter, text: str) -> Any:
    return float(text) if _NUMBER.fullmatch(text) else _BAD


def _flag(row: Hyperparameter, text: str) -> Any:
    return {"true": True, "false": False}.get(text.lower(), _BAD)


def _choice(row: Hyperparameter, text: str) -> Any:
    return next((choice for choice in row.choices if choice.lower() == text.lower()), _BAD)


def _fixed(row: Hyperparameter, text: str) -> Any:
    return row.default if _choice(row, text) is not _BAD else _BAD


def _text(row: Hyperparameter, text: str) -> Any:
    return row.default if text.lower() == "none" else text or _BAD


def _pattern(row: Hyperparameter, text: str) -> Any:
    if not text:
        return _BAD
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return _BAD
    return row.default if text.lower() == "none" else text


_PARSERS = {
    "int": _whole,
    "optional_int": _optional_whole,
    "float": _number,
    "bool": _flag,
    "choice": _choice,
    "text": _text,
    "pattern": _pattern,
    "fixed": _fixed,
}
