"""Downloads a base model from the Hugging Face Hub: resumable, and pickles only where there are no safetensors.

The token is read from HF_TOKEN in the environment only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from luthier.catalog.entry import check_tunable
from luthier.catalog.gguf_header import is_gguf
from luthier.catalog.locate import Location, suggest_model
from luthier.errors import CapacityError, ModelNotFoundError

MODEL_FILES = ("model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
PICKLE_FILES = "pytorch_model*.bin"  # downloaded where a repository has no safetensors
TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


def fetch(location: Location, say: Callable[[str], None], patterns: tuple[str, ...] = MODEL_FILES) -> Path:
    """Return the model's folder, downloading the files that match `patterns` when they are not local.

    Raises ModelNotFoundError, naming every place that was searched, when the Hub cannot be reached or has no such
    repository; CapacityError when the disk is too small; UserError for a catalogue model that cannot be tuned.
    """
    check_tunable(location.entry)
    if location.folder is not None and (location.repository is None or _is_complete(location.folder, patterns)):
        return location.folder
    assert location.repository is not None
    incomplete = () if location.folder is None else (f"{location.folder} (no weights in it)",)
    searched = "; ".join((*location.searched, *incomplete, "the Hugging Face Hub"))
    token = os.environ.get("HF_TOKEN") or False
    try:
        files = (
            huggingface_hub.HfApi(token=token)
            .model_info(location.repository, revision=location.revision, files_metadata=True, timeout=10)
            .siblings
        )
        if MODEL_FILES[0] in patterns and not any(Path(file.rfilename).match(MODEL_FILES[0]) for file in files or []):
            patterns = (PICKLE_FILES, *patterns[1:])
        _check_not_only_gguf(location.repository, [file.rfilename for file in files or []])
        size = sum(file.size or 0 for file in files or [] if any(Path(file.rfilename).match(p) for p in patterns))
        _check_disk_space(size, location.repository)
        say(f"downloading {location.repository} from the Hub: {size / 1e9:.2f} GB (an interrupted download resumes)")
        return Path(
            huggingface_hub.snapshot_download(
                location.repository, revision=location.revision, allow_patterns=list(patterns), token=token
            )
        )
    except (CapacityError, ModelNotFoundError):
        raise
    except Exception as error:  # the Hub's client raises its HTTP library's errors, which change between versions
        suggestion = "" if location.entry else suggest_model(location.name)
        raise ModelNotFoundError(
            f"model {location.name!r} not found{suggestion}; searched {searched} ({_reason(error)}); put its Hugging "
            f"Face folder at $LUTHIER_MODELS/{location.repository}"
        ) from error


def _is_complete(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a snapshot has weights where `patterns` include them: `inspect` downloads the tokenizer only."""
    if MODEL_FILES[0] not in patterns or is_gguf(folder):
        return True
    return any(next(folder.glob(pattern), None) is not None for pattern in ("*.safetensors", PICKLE_FILES))


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        hints = {
            401: "no such repository, or it needs HF_TOKEN",
            403: "access not granted to this HF_TOKEN",
            404: "no such repository",
        }
        return hints.get(error.response.status_code, f"HTTP {error.response.status_code}")
    return "offline" if isinstance(error, OfflineModeIsEnabled) else f"unreachable: {type(error).__name__}"


def _check_not_only_gguf(repository: str, names: list[str]) -> None:
    """ModelNotFoundError for a repository whose only weights are GGUF files, of which the user must choose one."""
    ggufs = sorted(name for name in names if is_gguf(Path(name)))
    if ggufs and not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise ModelNotFoundError(
            f"{repository} holds GGUF files only, {len(ggufs)} of them; download one and name its path: hf download "
            f"{repository} {ggufs[0]}"
        )


def _check_disk_space(size: int, repository: str) -> None:
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise CapacityError(
            f"{repository} needs {size / 1e9:.1f} GB, {existing} has {free / 1e9:.1f} GB free; "
            "set HF_HUB_CACHE to a larger disk"
        )
