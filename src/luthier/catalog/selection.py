"""Filters catalogue entries by text, kind, architecture, licence, size, and support by Autopilot.

The filter values are validated at construction. Whether a model's files are local is not considered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from luthier.catalog.entry import KINDS, Entry, entries
from luthier.errors import SettingError, did_you_mean

_UNITS = {"": 0, "k": 3, "m": 6, "b": 9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A filter of entries; None or "" means no restriction.

    `text` is part of any name; `architecture` a class (LlamaForCausalLM) or its config's model_type (llama);
    `licence` part of its name; `gated` whether it must be accepted; `max_parameters` a size such as 8B, rounded as
    written.
    Raises SettingError for a value that no entry has.
    """

    text: str = ""
    kind: str | None = None
    architecture: str | None = None
    licence: str | None = None
    gated: bool | None = None
    max_parameters: str | None = None
    autopilot: bool = False

    def __post_init__(self) -> None:
        known = entries()
        _check("--kind", self.kind, KINDS)
        _check("--architecture", self.architecture, [name for entry in known for name in _architectures(entry)])
        if self.licence and not any(_contains(entry.licence.name, self.licence) for entry in known):
            _check("--licence", self.licence, [entry.licence.name for entry in known])
        if self.max_parameters is not None:
            _parse_size(self.max_parameters)

    def __contains__(self, entry: Entry) -> bool:
        return (
            any(_contains(name, self.text) for name in entry.names)
            and (self.kind is None or self.kind.lower() in entry.kinds)
            and (self.architecture is None or self.architecture.lower() in map(str.lower, _architectures(entry)))
            and (self.licence is None or _contains(entry.licence.name, self.licence))
            and (self.gated is None or entry.licence.eula is self.gated)
            and (self.max_parameters is None or _is_at_most(entry.parameters, self.max_parameters))
            and (not self.autopilot or entry.autopilot is not None)
        )


def _architectures(entry: Entry) -> tuple[str, ...]:
    return (entry.architecture, *([entry.shape["model_type"]] if "model_type" in entry.shape else []))


def _contains(text: str, part: str) -> bool:
    return part.lower() in text.lower()


def _check(option: str, value: str | None, known: Iterable[str]) -> None:
    names = sorted(set(known))
    if value is not None and value.lower() not in map(str.lower, names):
        raise SettingError(f"{option} {value}{did_you_mean(value, names)}; expected one of {', '.join(names)}")


def _parse_size(text: str) -> tuple[float, int]:
    """Return the number of parameters and the power of ten of the last digit: 7.5B is (7.5e9, 8)."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?([kmb]?)", text.strip().lower())
    if match is None or not float(text.strip(" kKmMbB")):
        raise SettingError(f"--max-parameters {text}: expected a size such as 8B, 1.5B or 500M")
    whole, decimals, unit = match[1], match[2] or "", match[3]
    return float(f"{whole}.{decimals}e{_UNITS[unit]}"), _UNITS[unit] - len(decimals)


def _is_at_most(parameters: int, text: str) -> bool:
    count, power = _parse_size(text)
    step = 10.0**power
    return math.floor(parameters / step + 0.5) * step <= count
