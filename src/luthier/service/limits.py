"""What a server's operator sets to bound its engines: the words of --limit, --stall-seconds and --stop-seconds.

Knows the words and what this machine can set; setting a limit is for launchers/ to do.
"""

from __future__ import annotations

import math
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.errors import SettingError, did_you_mean

MOST_SECONDS = 30 * 86_400.0
_SIZE = re.compile(r"([0-9]{1,12})([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Limit:
    """One word of --limit: its name in `resource`, the least that an engine can live with, and an example."""

    resource: str
    least: int
    example: str

    @property
    def sized(self) -> bool:
        """Whether it is in bytes, and takes K, M, G and T."""
        return not self.example.isdecimal()


LIMITS = {
    "memory": Limit("RLIMIT_AS", 1 << 30, "64G"),
    "file-size": Limit("RLIMIT_FSIZE", 1 << 20, "100G"),
    "open-files": Limit("RLIMIT_NOFILE", 256, "4096"),
    "cpu-seconds": Limit("RLIMIT_CPU", 60, "86400"),
}


def limits(pairs: Sequence[str]) -> dict[str, int]:
    """The limits of `--limit NAME=VALUE ...` by their names in `resource`; SettingError for what cannot be set."""
    found: dict[str, int] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        limit = LIMITS.get(name)
        if limit is None:
            raise SettingError(
                f"--limit {pair}: {name!r} is no limit{did_you_mean(name, LIMITS)}; expected one of {', '.join(LIMITS)}"
            )
        if limit.resource in found:
            raise SettingError(f"--limit {pair}: {name} is given twice; leave one of them out")
        found[limit.resource] = _value(pair, text, limit)
    return found


def _value(pair: str, text: str, limit: Limit) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] and not limit.sized):
        kind = "a size" if limit.sized else "a number"
        raise SettingError(f"--limit {pair}: {text!r} is not {kind}; expected {kind} such as {limit.example}")
    value = int(match[1]) * _UNITS[match[2]]
    if value < limit.least:
        raise SettingError(f"--limit {pair}: no engine can work with so little; expected {_said(limit)} or more")
    most = resource.getrlimit(getattr(resource, limit.resource))[1]
    if most != resource.RLIM_INFINITY and value > most:
        raise SettingError(f"--limit {pair}: the system allows this user {most:,} at most; expected no more than that")
    return value


def _said(limit: Limit) -> str:
    unit = next((unit for unit in "GM" if limit.sized and limit.least >= _UNITS[unit]), "")
    return f"{limit.least // _UNITS[unit]}{unit}"


def seconds(value: float, option: str, least: float) -> float:
    """`value` where it is a time that makes sense; SettingError that begins with `option` where it does not."""
    if not (math.isfinite(value) and least <= value <= MOST_SECONDS):
        raise SettingError(f"{option} {value:g}: expected seconds from {least:g} to {MOST_SECONDS:,.0f}")
    return value
