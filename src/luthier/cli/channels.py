"""DATA, --validation and --test as channels: names to absolute paths on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from luthier import storage
from luthier.errors import UserError
from luthier.jobfolder import find_channels

Fetch = Callable[[str, str], Path]
"""How an s3:// address becomes a local path: (address, name of the side) -> path."""


def refuse_remote(location: str, _side: str) -> Path:
    """The Fetch of commands that keep no folder to copy into."""
    raise UserError(f"{location}: only `luthier tune` reads s3://; copy the rows to a folder first")


def read_channels(
    data: str, sides: Mapping[str, str | None], fetch: Fetch = refuse_remote, scoring: bool = False
) -> dict[str, Path]:
    """DATA's own channels, with each given side in place of DATA's; UserError for a path that is not there.

    `scoring`: DATA may hold nothing but test/ or validation/.
    """
    channels = find_channels(_local(data, "data", fetch), scoring)
    for side, location in sides.items():
        if location is not None:
            channels[side] = _local(location, side, fetch)
            if not channels[side].exists():
                raise UserError(f"--{side} {location}: no such file or folder")
    return {name: path.absolute() for name, path in channels.items()}


def _local(location: str, side: str, fetch: Fetch) -> Path:
    return fetch(location, side) if storage.is_remote(location) else Path(location).expanduser()
