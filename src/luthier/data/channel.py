"""A channel: the row files of one folder in sorted order, and its template.json.

training/            the channel (may itself be a link; links in it may not lead out of it)
  a.jsonl  b.jsonl   read in sorted order
  template.json      the template
  notes.md  .DS_Store  raw/    not read, named in a warning
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.data.template import Template
from luthier.errors import DataError, Problem

TEMPLATE = "template.json"
ROW_SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt", ".json")
_TRAINING_NAMES = ("training", "train")
_MAX_NAMES = 5  # files named in one warning


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows. `name` is its path relative to the channel."""

    channel: str
    name: str
    path: Path

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    def sha256(self) -> str:
        """Return the hash of the content; DataError when the file cannot be read."""
        try:
            with open(self.path, "rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise DataError(Problem(self.name, 0, f"cannot be read: {error.strerror}")) from None


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The files of one channel."""

    name: str
    root: Path
    files: tuple[RowFile, ...]
    template: Path | None = None
    warnings: tuple[str, ...] = field(default=())


def open_channels(channels: Mapping[str, Path]) -> list[Channel]:
    """List every channel, in the order training, validation, test; DataError when one cannot be read."""
    if "training" not in channels:
        raise DataError(Problem("", 0, "no training channel; give a folder with the training rows"))
    return [_open(name, channels[name]) for name in ("training", "validation", "test") if name in channels]


def _open(name: str, path: Path) -> Channel:
    if not path.exists():
        raise DataError(Problem(str(path), 0, f"the {name} channel is neither a file nor a folder"))
    root = path.resolve()
    if root.is_file():
        beside = root.parent / TEMPLATE
        template = beside if name == "training" and beside.is_file() and root.name != TEMPLATE else None
        file = RowFile(name, root.name, root)
        return Channel(name=name, root=root.parent, files=(file,), template=template)
    files, ignored = [], []
    for entry in sorted(root.iterdir(), key=lambda entry: entry.name):
        _check_link(entry, root, name)
        if entry.name == TEMPLATE and entry.is_file():
            continue
        if entry.is_file() and not entry.name.startswith(".") and entry.suffix.lower() in ROW_SUFFIXES:
            files.append(RowFile(name, entry.name, entry))
        else:
            ignored.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    if not files:
        hint = f"; it contains {_names(ignored)}, which are not read" if ignored else ""
        raise DataError(Problem(str(path), 0, f"the {name} channel contains no {', '.join(ROW_SUFFIXES)} file{hint}"))
    warnings = (f"{name} channel: not read: {_names(ignored)}",) if ignored else ()
    template = root / TEMPLATE if (root / TEMPLATE).is_file() else None
    return Channel(name=name, root=root, files=tuple(files), template=template, warnings=warnings)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _check_link(entry: Path, root: Path, channel: str) -> None:
    if not entry.is_symlink():
        return
    if not entry.exists():
        raise DataError(Problem(entry.name, 0, f"broken link in the {channel} channel; remove it"))
    if not entry.resolve().is_relative_to(root):
        raise DataError(Problem(entry.name, 0, f"link to outside of the {channel} channel; copy the file into it"))


def find_template(channels: list[Channel], demarcation: str) -> Template | None:
    """Return the template.json in the training folder or, if that is named training or train, next to it.

    Other channels use the training template. DataError when several template.json differ.
    """
    training = channels[0]
    places = [training.template] if training.template else []
    if training.root.name in _TRAINING_NAMES and (training.root.parent / TEMPLATE).is_file():
        places.append(training.root.parent / TEMPLATE)
    places += [channel.template for channel in channels[1:] if channel.template]
    templates = [(place, Template.read(place, demarcation)) for place in places]
    for place, template in templates[1:]:
        if template != templates[0][1]:
            raise DataError(Problem(TEMPLATE, 0, f"{templates[0][0]} and {place} differ; keep one of them"))
    if templates and not any(place.parent in (training.root, training.root.parent) for place, _ in templates):
        raise DataError(
            Problem(TEMPLATE, 0, f"{templates[0][0]} is not in the training channel; move it to {training.root}")
        )
    return templates[0][1] if templates else None
