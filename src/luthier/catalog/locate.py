"""Finds a base model's files: a folder, a GGUF file, the local mirror, the Hub's cache, or a repository to download.

Nothing is downloaded here; `hub.fetch` does that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from luthier.catalog.entry import REPOSITORY, Entry, entries, find
from luthier.catalog.gguf_header import is_gguf, read_header
from luthier.catalog.near_names import plain_name, suggest_name
from luthier.catalog.shape import entry_from_config, entry_from_header
from luthier.catalog.tuned_adapter import TunedAdapter, find_model_folder, read_adapter
from luthier.errors import ModelNotFoundError, did_you_mean

EMBEDDED = Path(__file__).parent / "tiny"
MAX_LISTED = 1000
"""Files of one folder that are compared with a misspelt name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A base model's name with the `folder` of its files, or the `repository` to download them from.

    `folder` is a file where the model is one GGUF file; `weights.convert` makes a folder of it. `entry` is the
    catalogue's; for a model outside the catalogue it is made from config.json, and None until that file is local.
    `searched` lists the places without the model's files, for the error message. `adapter` is the one to tune further,
    on the model with this name.
    """

    name: str
    entry: Entry | None = None
    folder: Path | None = None
    repository: str | None = None
    revision: str | None = None
    searched: tuple[str, ...] = ()
    adapter: TunedAdapter | None = None

    def with_folder(self, folder: Path) -> Location:
        """Return the same model with its files in `folder`."""
        entry = self.entry or entry_from_config(self.name, folder)
        if self.folder is not None and is_gguf(self.folder) and not entry.shape:  # made from GGUF metadata before
            stored = entry_from_config(self.name, folder)
            entry = replace(stored, parameters=entry.parameters, licence=entry.licence)
        return replace(self, entry=entry, folder=folder)


def locate(model: str, environment: Mapping[str, str] = os.environ) -> Location:
    """Resolve a model's name: a catalogue name, a folder in Hugging Face layout, a GGUF file or a folder with one, a
    run or its artifact, or ORG/NAME of the Hub.

    Search order: an existing file or folder, the embedded model, $LUTHIER_MODELS/<org>/<name>, the Hub's local cache.
    Raises ModelNotFoundError for a name that is none of these and cannot be a repository.
    """
    folder = _existing_folder(model)
    folder = folder and find_model_folder(folder)
    adapter = read_adapter(folder) if folder else None
    if adapter is not None:
        return replace(_locate_base(adapter, environment), adapter=adapter)
    gguf = _gguf_file(model, folder, environment)
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
            f"unknown model {model!r}{suggest_model(model, environment)}; `luthier models` lists the names, and a "
            "folder or ORG/NAME of the Hub works too"
        )
    revision = owner.revision if owner else None
    location = Location(name=entry.id if entry else model, entry=entry, repository=repository, revision=revision)
    searched = []
    for place, stored in _local_places(repository, revision, environment):
        gguf = _gguf_file(model, stored, environment) if stored is not None and stored.is_dir() else None
        if gguf is not None:
            return replace(location, entry=entry or entry_from_header(model, read_header(gguf)), folder=gguf)
        if stored is not None and (stored / "config.json").is_file():
            return location.with_folder(stored.resolve())
        searched.append(place)
    return replace(location, searched=tuple(searched))


def _locate_base(adapter: TunedAdapter, environment: Mapping[str, str]) -> Location:
    """The base model of an adapter: the first name whose files are on this machine, else the first repository."""
    repository: Location | None = None
    for name in adapter.base_names:
        try:
            location = locate(name, environment)
        except ModelNotFoundError:
            continue  # a folder or file of another machine
        if location.folder is not None:
            return location
        repository = repository or location
    if repository is None:
        raise ModelNotFoundError(
            f"{adapter.folder}: its base model was not found; searched {', '.join(adapter.base_names)}; put the base "
            "back, or tune an export of the run (luthier export --merged)"
        )
    return repository


def suggest_model(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return ``; did you mean 'x'?`` for the closest folder beside the path `name`, name of the catalogue, or
    repository stored on this machine; an empty string if none is close.
    """
    repository = plain_name(name)
    if repository != name and (REPOSITORY.fullmatch(repository) or find(repository, environment)):
        return f"; did you mean {repository!r}?"
    known = [each for entry in entries(environment) for each in entry.names]
    return did_you_mean(name, _folders_beside(name), cutoff=0.75) or suggest_name(
        name, [*known, *_stored_repositories(environment)]
    )


def _folders_beside(name: str) -> list[str]:
    """Paths of the models in the folder in which the path `name` would be, as the user would write them."""
    parent, _, _ = name.rpartition("/")
    folder = _existing_folder(parent or ".")
    if folder is None or "/" not in name:
        return []
    with os.scandir(folder) as scan:
        models = [item.name for item in islice(scan, MAX_LISTED) if is_gguf(Path(item.name)) or
                  (Path(item.path) / "config.json").is_file()]  # fmt: skip
    return [f"{parent}/{model}" for model in sorted(models)]


def _stored_repositories(environment: Mapping[str, str]) -> list[str]:
    """ORG/NAME of the repositories in the Hub's cache and in $LUTHIER_MODELS."""
    cached = [path.name.removeprefix("models--").replace("--", "/", 1)
              for path in islice(_hub_cache(environment).glob("models--*--*"), MAX_LISTED)]  # fmt: skip
    mirror = environment.get("LUTHIER_MODELS")
    if mirror:
        root = Path(mirror).expanduser()
        cached += [path.parent.relative_to(root).as_posix()
                   for path in islice(root.glob("*/*/config.json"), MAX_LISTED)]  # fmt: skip
    return sorted(cached)


def _existing_folder(model: str) -> Path | None:
    """Return the folder at the path `model`; None when there is none, or the text cannot be a path."""
    try:
        path = Path(model).expanduser()
        return path.resolve() if model and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _gguf_file(model: str, folder: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the GGUF file that `model` names, or the one in `folder` where there are no other weights.

    ModelNotFoundError when the file does not exist, or the folder has several.
    """
    if folder is None:
        if not is_gguf(Path(model)):
            return None
        path = Path(model).expanduser()
        if path.is_file():
            return path.absolute()  # resolved, a link of the Hub's cache would lose the suffix
        raise ModelNotFoundError(f"{model}: no such file{suggest_model(model, environment)}; expected a GGUF file")
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
