"""Read-only buckets whose objects are generated on request, such as JumpStart's caches."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from luthier.objects.names import key_bytes
from luthier.objects.queries import Attributes, StoredObject


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualBucket:
    """Stands for every bucket whose name matches `pattern`.

    `read(bucket, key)` returns an object's bytes, the same as long as the server runs, None for no object;
    `keys(bucket)` returns all keys. `modified` (seconds since 1970) is the LastModified of all objects.
    """

    pattern: str
    read: Callable[[str, str], bytes | None]
    keys: Callable[[str], Iterable[str]]
    modified: float = 1767225600.0
    content_type: str = "application/json"

    def matches(self, bucket: str) -> bool:
        return re.fullmatch(self.pattern, bucket) is not None

    def find(self, bucket: str, key: str) -> tuple[StoredObject, bytes] | None:
        data = self.read(bucket, key)
        if data is None:
            return None
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        members = {"ContentType": self.content_type}
        return StoredObject(
            bucket=bucket,
            key=key,
            content="",
            size=len(data),
            etag=etag,
            modified=self.modified,
            attributes=Attributes(members),
        ), data

    def list(self, bucket: str, start: bytes, end: bytes | None, limit: int) -> Sequence[StoredObject]:
        """Objects with keys from `start` on, before `end`, in S3's order."""
        known = sorted((key_bytes(key), key) for key in self.keys(bucket))
        names = [key for encoded, key in known if encoded >= start and (end is None or encoded < end)]
        return [result[0] for key in names[:limit] if (result := self.find(bucket, key))]
