"""A channel: the row files of one folder in sorted order, and its template.json.

training/            the channel (may itself be a link; links in it may not lead out of it)
  a.jsonl  b.jsonl   read in sorted order
  template.json      the template
  notes.md  .DS_Store  raw/    not read, named in a warning
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from luthier.data.template import Template
from luthier.errors import DataError, Problem

TEMPLATE = "template.json"
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    "test": "test",
}
_SAVED_DATASET = ("dataset_info.json", "dataset_dict.json", "state.json")
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
        """In lower case, without a .gz after it."""
        return row_suffix(self.path)

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


def row_suffix(path: Path) -> str:
    """The suffix that says how rows are read, in lower case: that before .gz in a.jsonl.gz."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def open_channels(channels: Mapping[str, Path], *, split_by_name: bool = False) -> list[Channel]:
    """List every channel, in the order training, validation, test; DataError when one cannot be read.

    `split_by_name`: where the training channel is the only one and its files are named for their split
    (train*, validation*, test*), each becomes a file of that channel.
    """
    if "training" not in channels:
        raise DataError(Problem("", 0, "no training channel; give a folder with the training rows"))
    opened = [_open(name, channels[name]) for name in ("training", "validation", "test") if name in channels]
    return _split_by_name(opened[0]) if split_by_name and len(opened) == 1 else opened


def _split_by_name(channel: Channel) -> list[Channel]:
    """The channels that the names of the files say; the channel itself if they say nothing or one split only.

    DataError if some files are named for a split and others are not.
    """
    splits = {file: _SPLIT_NAMES.get(re.split(r"[-_.]", file.name.lower())[0], "") for file in channel.files}
    if not set(splits.values()) - {"", "training"} or len(set(splits.values())) == 1:
        return [channel]
    if unnamed := [file.name for file, split in splits.items() if not split]:
        named = next(file.name for file, split in splits.items() if split not in ("", "training"))
        message = (
            f"{named} is named for a split and {_names(unnamed)} for none; name every file train*, validation* or "
            "test*, or put them into the folders training/, validation/ and test/"
        )
        raise DataError(Problem(str(channel.root), 0, message))
    if "training" not in splits.values():
        named = _names([file.name for file in channel.files])
        raise DataError(Problem(str(channel.root), 0, f"no file is named train*: {named}; rename one, or give folders"))
    channels = []
    for name in ("training", "validation", "test"):
        files = tuple(RowFile(name, file.name, file.path) for file, split in splits.items() if split == name)
        if files:
            channels.append(replace(channel, name=name, files=files, template=None, warnings=()))
    said = "; ".join(f"{part.name}: {_names([file.name for file in part.files])}" for part in channels)
    first = replace(channels[0], template=channel.template, warnings=(*channel.warnings, f"split by name: {said}"))
    return [first, *channels[1:]]


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
        if entry.is_file() and entry.name in _SAVED_DATASET:
            ignored.append(entry.name)
        elif entry.is_file() and not entry.name.startswith(".") and row_suffix(entry) in ROW_SUFFIXES:
            files.append(RowFile(name, entry.name, entry))
        else:
            ignored.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    if not files:
        if set(ignored) & set(_SAVED_DATASET):
            message = (
                "a folder that datasets wrote with save_to_disk; write its rows as a file: "
                "load_from_disk(...).to_json('rows/train.jsonl')"
            )
            raise DataError(Problem(str(path), 0, message))
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
