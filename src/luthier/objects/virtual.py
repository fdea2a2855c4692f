"""Read-only buckets whose objects are made when they are asked for, such as JumpStart's caches."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from luthier.objects.names import key_bytes
from luthier.objects.queries import Attributes, Object


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualBucket:
    """Answers for every bucket whose whole name matches `pattern`.

    `read(bucket, key)` is the object's bytes, None where there is none, the same ones as long as the server runs (its
    MD5 is the ETag); `keys(bucket)` are all keys. `modified` (seconds since 1970) is when its objects say they are of.
    """

    pattern: str
    read: Callable[[str, str], bytes | None]
    keys: Callable[[str], Iterable[str]]
    modified: float = 1767225600.0
    content_type: str = "application/json"

    def matches(self, bucket: str) -> bool:
        return re.fullmatch(self.pattern, bucket) is not None

    def find(self, bucket: str, key: str) -> tuple[Object, bytes] | None:
        data = self.read(bucket, key)
        if data is None:
            return None
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        members = {"ContentType": self.content_type}
        return Object(
            bucket=bucket,
            key=key,
            content="",
            size=len(data),
            etag=etag,
            modified=self.modified,
            attributes=Attributes(members),
        ), data

    def list(self, bucket: str, start: bytes, end: bytes | None, limit: int) -> Sequence[Object]:
        """Objects from key `start` on, before `end`, in S3's order."""
        known = sorted((key_bytes(key), key) for key in self.keys(bucket))
        names = [key for encoded, key in known if encoded >= start and (end is None or encoded < end)]
        return [found[0] for key in names[:limit] if (found := self.find(bucket, key))]
