"""Checkpoints in S3 (CheckpointConfig): uploaded while a job trains, and found by the next job with the same address.

Each checkpoint is a prefix `step-000040/` below the address; state.json is uploaded last, so a checkpoint without it is
incomplete. Nothing is deleted there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from luthier.errors import LuthierError, NoObjectsError, UserError
from luthier.supervisor.layout import ArtifactStore
from luthier.supervisor.transfer import Transfer

MARKER = "state.json"


def download_checkpoints(objects: ArtifactStore, uri: str, folder: Path) -> int:
    """Download the complete checkpoints below an address into `folder`; return their number.

    UserError for a bucket that is missing; no checkpoints are no error.
    """
    objects.check_bucket(uri)
    temporary = folder.with_name(".checkpoints-downloading")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with suppress(NoObjectsError):
        objects.download_prefix(uri, temporary)
    complete = [path.parent for path in temporary.glob(f"step-*/{MARKER}")]
    if complete:
        folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in complete:
        shutil.rmtree(folder / checkpoint.name, ignore_errors=True)
        checkpoint.rename(folder / checkpoint.name)
    shutil.rmtree(temporary)
    return len(complete)


class CheckpointUploads:
    """Uploads the checkpoints of `folder` as they appear, in a thread; `log` gets what fails, which is tried again."""

    def __init__(self, objects: ArtifactStore, uri: str, folder: Path, log: Callable[[str], None]) -> None:
        self._objects, self._uri, self._folder, self._log = objects, uri.rstrip("/"), folder, log
        self._uploaded: set[str] = set()
        self._failed = ""
        self._transfer: Transfer | None = None

    def poll(self) -> bool:
        """Start uploading what is new; return whether everything is uploaded."""
        if not self._uri:
            return True
        if self._transfer is not None:
            if self._transfer.running:
                return False
            error, self._transfer = self._transfer.error, None
            if error is not None and str(error) != self._failed:
                self._failed = str(error)
                self._log(f"a checkpoint could not be uploaded: {self._failed}; trying again")
        new = [path.parent for path in sorted(self._folder.glob(f"step-*/{MARKER}"))
               if path.parent.name not in self._uploaded]  # fmt: skip
        if not new:
            return True
        self._transfer = Transfer(lambda: self._upload(new), "checkpoints")
        return False

    @property
    def has_failed(self) -> bool:
        """Whether the last upload failed."""
        return bool(self._failed)

    def _upload(self, checkpoints: list[Path]) -> None:
        for checkpoint in checkpoints:
            try:
                for path in sorted(checkpoint.iterdir(), key=lambda path: path.name == MARKER):
                    self._objects.upload_file(path, f"{self._uri}/{checkpoint.name}/{path.name}")
            except FileNotFoundError:
                pass  # the engine has deleted it: a newer one takes its place
            except LuthierError:
                raise
            except OSError as error:
                raise UserError(f"{checkpoint}: {error}") from error
            self._uploaded.add(checkpoint.name)
        self._failed = ""
