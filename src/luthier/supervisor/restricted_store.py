"""The object store as a job or an endpoint reaches it: with the rights of the access key that created it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.rights import Rights
from luthier.supervisor.layout import ArtifactStore


@dataclass(frozen=True, slots=True)
class RestrictedStore:
    """An ArtifactStore that checks each address first; UserError for one that the rights do not allow."""

    objects: ArtifactStore
    rights: Rights

    def download_prefix(self, uri: str, folder: Path) -> Any:
        self.rights.check_address(uri, write=False)
        return self.objects.download_prefix(uri, folder)

    def upload_file(self, path: Path, uri: str) -> None:
        self.rights.check_address(uri, write=True)
        self.objects.upload_file(path, uri)

    def check_bucket(self, uri: str) -> None:
        self.rights.check_address(uri, write=True)
        self.objects.check_bucket(uri)
