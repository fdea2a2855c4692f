"""A selection of entries: by text, kind, architecture, licence, size, and whether Autopilot takes them.

Each word of a selection is checked when it is made; it knows nothing of what is on this machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from luthier.catalog.entry import KINDS, Entry, entries
from luthier.errors import SettingError, did_you_mean

_UNITS = {"": 0, "k": 3, "m": 6, "b": 9}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list is narrowed to; None or "" leaves a side open.

    `text` is part of any name; `architecture` a class (LlamaForCausalLM) or its config's model_type (llama);
    `licence` part of its name; `gated` whether it must be accepted; `max_parameters` a size such as 8B, rounded as
    written.
    Raises SettingError for a word that no entry has.
    """

    text: str = ""
    kind: str | None = None
    architecture: str | None = None
    licence: str | None = None
    gated: bool | None = None
    max_parameters: str | None = None
    autopilot: bool = False

    def __post_init__(self) -> None:
        shown = entries()
        _check("--kind", self.kind, KINDS)
        _check("--architecture", self.architecture, [name for entry in shown for name in _architectures(entry)])
        if self.licence and not any(_holds(entry.licence.name, self.licence) for entry in shown):
            _check("--licence", self.licence, [entry.licence.name for entry in shown])
        if self.max_parameters is not None:
            _size(self.max_parameters)

    def __contains__(self, entry: Entry) -> bool:
        return (
            any(_holds(name, self.text) for name in entry.names)
            and (self.kind is None or self.kind.lower() in entry.kinds)
            and (self.architecture is None or self.architecture.lower() in map(str.lower, _architectures(entry)))
            and (self.licence is None or _holds(entry.licence.name, self.licence))
            and (self.gated is None or entry.licence.eula is self.gated)
            and (self.max_parameters is None or _fits(entry.parameters, self.max_parameters))
            and (not self.autopilot or entry.autopilot is not None)
        )


def _architectures(entry: Entry) -> tuple[str, ...]:
    return (entry.architecture, *([entry.shape["model_type"]] if "model_type" in entry.shape else []))


def _holds(text: str, part: str) -> bool:
    return part.lower() in text.lower()


def _check(option: str, value: str | None, known: Iterable[str]) -> None:
    names = sorted(set(known))
    if value is not None and value.lower() not in map(str.lower, names):
        raise SettingError(f"{option} {value}{did_you_mean(value, names)}; expected one of {', '.join(names)}")


def _size(text: str) -> tuple[float, int]:
    """A written size as a count, and the power of ten of its last digit: 7.5B is (7.5e9, 8)."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?([kmb]?)", text.strip().lower())
    if match is None or not float(text.strip(" kKmMbB")):
        raise SettingError(f"--max-parameters {text}: expected a size such as 8B, 1.5B or 500M")
    whole, decimals, unit = match[1], match[2] or "", match[3]
    return float(f"{whole}.{decimals}e{_UNITS[unit]}"), _UNITS[unit] - len(decimals)


def _fits(parameters: int, text: str) -> bool:
    count, power = _size(text)
    step = 10.0**power
    return math.floor(parameters / step + 0.5) * step <= count
