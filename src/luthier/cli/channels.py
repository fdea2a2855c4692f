"""DATA, --validation and --test as channels: channel names to absolute local paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from luthier import storage
from luthier.errors import UserError
from luthier.jobfolder import find_channels

Fetch = Callable[[str, str], Path]
"""Copies an s3:// location to a local path: (location, split) -> path."""


def refuse_remote(location: str, _split: str) -> Path:
    """The Fetch of commands that have no folder to copy into."""
    raise UserError(f"{location}: only `luthier tune` reads s3://; copy the rows to a local folder first")


def read_channels(
    data: str, splits: Mapping[str, str | None], fetch: Fetch = refuse_remote, scoring: bool = False
) -> dict[str, Path]:
    """Return the channels in DATA, each replaced by its location in `splits`; UserError for a missing path.

    `scoring`: DATA may hold only test/ or validation/.
    """
    channels = find_channels(_local(data, "data", fetch), scoring)
    for split, location in splits.items():
        if location is not None:
            channels[split] = _local(location, split, fetch)
            if not channels[split].exists():
                raise UserError(f"--{split} {location}: no such file or folder")
    return {name: path.absolute() for name, path in channels.items()}


def _local(location: str, split: str, fetch: Fetch) -> Path:
    return fetch(location, split) if storage.is_remote(location) else Path(location).expanduser()
