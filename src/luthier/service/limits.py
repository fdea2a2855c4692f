"""The values of --limit, --stall-seconds and --stop-seconds, which bound engines.

Parses and checks them against what this machine allows; launchers/ set the limits.
"""

from __future__ import annotations

import math
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.errors import SettingError, did_you_mean

MAX_SECONDS = 30 * 86_400.0
_SIZE = re.compile(r"([0-9]{1,12})([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class LimitOption:
    """One name of --limit: its name in `resource`, the minimum an engine can work with, and an example."""

    resource: str
    minimum: int
    example: str

    @property
    def is_size(self) -> bool:
        """Whether it is in bytes, and takes K, M, G and T."""
        return not self.example.isdecimal()


LIMITS = {
    "memory": LimitOption("RLIMIT_AS", 1 << 30, "64G"),
    "file-size": LimitOption("RLIMIT_FSIZE", 1 << 20, "100G"),
    "open-files": LimitOption("RLIMIT_NOFILE", 256, "4096"),
    "cpu-seconds": LimitOption("RLIMIT_CPU", 60, "86400"),
}


def parse_limits(pairs: Sequence[str]) -> dict[str, int]:
    """`--limit NAME=VALUE ...` by the names in `resource`; SettingError for what cannot be set."""
    parsed: dict[str, int] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        limit = LIMITS.get(name)
        if limit is None:
            hint = did_you_mean(name, LIMITS)
            raise SettingError(f"--limit {pair}: unknown limit {name!r}{hint}; expected one of {', '.join(LIMITS)}")
        if limit.resource in parsed:
            raise SettingError(f"--limit {pair}: {name} is given twice; remove one of them")
        parsed[limit.resource] = _value(pair, text, limit)
    return parsed


def _value(pair: str, text: str, limit: LimitOption) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] and not limit.is_size):
        kind = "a size" if limit.is_size else "a number"
        raise SettingError(f"--limit {pair}: {text!r} is not {kind}; expected {kind} such as {limit.example}")
    value = int(match[1]) * _UNITS[match[2]]
    if value < limit.minimum:
        raise SettingError(f"--limit {pair}: too low for an engine; expected {_format_minimum(limit)} or more")
    maximum = resource.getrlimit(getattr(resource, limit.resource))[1]
    if maximum != resource.RLIM_INFINITY and value > maximum:
        raise SettingError(f"--limit {pair}: the system allows this user {maximum:,} at most")
    return value


def _format_minimum(limit: LimitOption) -> str:
    unit = next((unit for unit in "GM" if limit.is_size and limit.minimum >= _UNITS[unit]), "")
    return f"{limit.minimum // _UNITS[unit]}{unit}"


def check_seconds(value: float, option: str, minimum: float) -> float:
    """`value`, if it is a valid time; SettingError that begins with `option` otherwise."""
    if not (math.isfinite(value) and minimum <= value <= MAX_SECONDS):
        raise SettingError(f"{option} {value:g}: expected seconds from {minimum:g} to {MAX_SECONDS:,.0f}")
    return value
