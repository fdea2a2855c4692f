"""Where a base model's files are: a folder, the local mirror, the Hub's cache, or a repository still to be fetched.

Nothing is downloaded here; `hub.fetch` does that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.catalog.entry import Entry, find, suggest
from luthier.catalog.shape import entry_from_config
from luthier.errors import ModelNotFoundError

EMBEDDED = Path(__file__).parent / "tiny"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Location:
    """A named base model: `folder` when its files are at hand, else the `repository` to fetch them from.

    `entry` is the catalogue's; for a model that the catalogue does not know, one made of its config.json, and None
    until that is at hand. `searched` lists the places that were tried, for the message when nothing is found.
    """

    name: str
    entry: Entry | None
    folder: Path | None
    repository: str | None = None
    revision: str | None = None
    searched: tuple[str, ...] = ()

    def with_folder(self, folder: Path) -> Location:
        """The same model, its files being at hand in `folder`."""
        return replace(self, entry=self.entry or entry_from_config(self.name, folder), folder=folder)


def locate(model: str, environment: Mapping[str, str] = os.environ) -> Location:
    """Resolve what a user calls a model: a catalogue name, a folder in Hugging Face layout, or ORG/NAME.

    Order: an existing folder, the embedded model, $LUTHIER_MODELS/<org>/<name>, the Hub's local cache.
    Raises ModelNotFoundError for a name that is none of these and cannot be a repository.
    """
    folder = _existing_folder(model)
    if folder is not None and (folder / "config.json").is_file():
        return Location(model, entry_from_config(model, folder), folder)
    entry = find(model, environment)
    if entry is not None and entry.source == "embedded":
        return Location(entry.id, entry, EMBEDDED)
    if entry is None and folder is not None:
        raise ModelNotFoundError(f"{model}: the folder has no config.json; expected a model in Hugging Face layout")
    owner = (find(entry.source, environment) or entry) if entry else None
    repository = owner.source if owner else model
    if not _REPOSITORY.fullmatch(repository):
        raise ModelNotFoundError(
            f"unknown model {model!r}{suggest(model, environment)}; `luthier models` lists the names, and a folder or "
            "ORG/NAME of the Hub works too"
        )
    revision = owner.revision if owner else None
    name = entry.id if entry else model
    looked = []
    for place, stored in _local_places(repository, revision, environment):
        if stored is not None and (stored / "config.json").is_file():
            return Location(name, entry, None, repository, revision).with_folder(stored.resolve())
        looked.append(place)
    return Location(name, entry, None, repository, revision, tuple(looked))


def _existing_folder(model: str) -> Path | None:
    """The folder that `model` is a path of; None for text that cannot be one (empty, too long, an unknown ~user)."""
    try:
        path = Path(model).expanduser()
        return path.resolve() if model and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _local_places(
    repository: str, revision: str | None, environment: Mapping[str, str]
) -> list[tuple[str, Path | None]]:
    places: list[tuple[str, Path | None]] = []
    mirror = environment.get("LUTHIER_MODELS")
    if mirror:
        folder = Path(mirror).expanduser() / repository
        places.append((str(folder), folder))
    else:
        places.append(("LUTHIER_MODELS (not set)", None))
    snapshots = _hub_cache(environment) / f"models--{repository.replace('/', '--')}"
    reference = snapshots / "refs" / (revision or "main")
    commit = reference.read_text("ascii").strip() if reference.is_file() else (revision or "main")
    places.append((str(snapshots), snapshots / "snapshots" / commit))
    return places


def _hub_cache(environment: Mapping[str, str]) -> Path:
    """The Hub library's own cache folder, by its documented variables."""
    if "HF_HUB_CACHE" in environment:
        return Path(environment["HF_HUB_CACHE"])
    home = environment.get("HF_HOME") or str(Path(environment.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"
