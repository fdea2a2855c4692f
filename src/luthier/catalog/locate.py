"""Finds a base model's files: a folder, a GGUF file, the local mirror, the Hub's cache, or a repository to download.

Nothing is downloaded here; `hub.fetch` does that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.catalog.entry import REPOSITORY, Entry, find, suggest
from luthier.catalog.gguf_header import is_gguf, read_header
from luthier.catalog.shape import entry_from_config, entry_from_header
from luthier.errors import ModelNotFoundError

EMBEDDED = Path(__file__).parent / "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A base model's name with the `folder` of its files, or the `repository` to download them from.

    `folder` is a file where the model is one GGUF file; `weights.convert` makes a folder of it. `entry` is the
    catalogue's; for a model outside the catalogue it is made from config.json, and None until that file is local.
    `searched` lists the places without the model's files, for the error message.
    """

    name: str
    entry: Entry | None = None
    folder: Path | None = None
    repository: str | None = None
    revision: str | None = None
    searched: tuple[str, ...] = ()

    def with_folder(self, folder: Path) -> Location:
        """Return the same model with its files in `folder`."""
        entry = self.entry or entry_from_config(self.name, folder)
        if self.folder is not None and is_gguf(self.folder) and not entry.shape:  # made from GGUF metadata before
            stored = entry_from_config(self.name, folder)
            entry = replace(stored, parameters=entry.parameters, licence=entry.licence)
        return replace(self, entry=entry, folder=folder)


def locate(model: str, environment: Mapping[str, str] = os.environ) -> Location:
    """Resolve a model's name: a catalogue name, a folder in Hugging Face layout, a GGUF file or a folder with one, or
    ORG/NAME of the Hub.

    Search order: an existing file or folder, the embedded model, $LUTHIER_MODELS/<org>/<name>, the Hub's local cache.
    Raises ModelNotFoundError for a name that is none of these and cannot be a repository.
    """
    folder = _existing_folder(model)
    gguf = _gguf_file(model, folder)
    if gguf is not None:
        return Location(name=model, entry=entry_from_header(model, read_header(gguf)), folder=gguf)
    if folder is not None and (folder / "config.json").is_file():
        return Location(name=model, entry=entry_from_config(model, folder), folder=folder)
    entry = find(model, environment)
    if entry is not None and entry.source == "embedded":
        return Location(name=entry.id, entry=entry, folder=EMBEDDED)
    if entry is None and folder is not None:
        raise ModelNotFoundError(
            f"{model}: the folder has neither config.json nor a GGUF file; expected a model in Hugging Face layout, or "
            "one file *.gguf"
        )
    owner = (find(entry.source, environment) or entry) if entry else None
    repository = owner.source if owner else model
    if not REPOSITORY.fullmatch(repository):
        raise ModelNotFoundError(
            f"unknown model {model!r}{suggest(model, environment)}; `luthier models` lists the names, and a folder or "
            "ORG/NAME of the Hub works too"
        )
    revision = owner.revision if owner else None
    location = Location(name=entry.id if entry else model, entry=entry, repository=repository, revision=revision)
    searched = []
    for place, stored in _local_places(repository, revision, environment):
        gguf = _gguf_file(model, stored) if stored is not None and stored.is_dir() else None
        if gguf is not None:
            return replace(location, entry=entry or entry_from_header(model, read_header(gguf)), folder=gguf)
        if stored is not None and (stored / "config.json").is_file():
            return location.with_folder(stored.resolve())
        searched.append(place)
    return replace(location, searched=tuple(searched))


def _existing_folder(model: str) -> Path | None:
    """Return the folder at the path `model`; None when there is none, or the text cannot be a path."""
    try:
        path = Path(model).expanduser()
        return path.resolve() if model and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _gguf_file(model: str, folder: Path | None) -> Path | None:
    """Return the GGUF file that `model` names, or the one in `folder` where there are no other weights.

    ModelNotFoundError when the file does not exist, or the folder has several.
    """
    if folder is None:
        if not is_gguf(Path(model)):
            return None
        path = Path(model).expanduser()
        if path.is_file():
            return path.absolute()  # resolved, a link of the Hub's cache would lose the suffix
        raise ModelNotFoundError(f"{model}: no such file; expected a GGUF file")
    if any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        return None
    files = sorted(file for file in folder.iterdir() if is_gguf(file) and file.is_file())
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:6]) + (", ..." if len(files) > 6 else "")
        raise ModelNotFoundError(f"{model}: the folder has {len(files)} GGUF files; name one of them: {names}")
    return files[0] if files else None


def _local_places(
    repository: str, revision: str | None, environment: Mapping[str, str]
) -> list[tuple[str, Path | None]]:
    """(name for messages, folder) of each place on this machine that may hold the repository's files."""
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
    """The cache folder of the huggingface_hub library, from its documented variables."""
    if "HF_HUB_CACHE" in environment:
        return Path(environment["HF_HUB_CACHE"])
    home = environment.get("HF_HOME") or str(Path(environment.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"
