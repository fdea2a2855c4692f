"""JumpStart's cache buckets, whose objects are generated when they are read.

jumpstart-cache-prod-<region>            models_manifest.json, proprietary-sdk-manifest.json, a spec for each id and
                                         version, and placeholders for artifacts and scripts
jumpstart-private-cache-prod-<region>    placeholders for the artifacts of gated models
"""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections.abc import Callable, Iterable, Mapping

from luthier.api.jumpstart.spec import MIN_SDK, spec
from luthier.catalog.entry import Entry
from luthier.catalog.jumpstart import BUCKETS, VERSIONS, entries_by_id, is_private, object_key, region_of
from luthier.objects.virtual import VirtualBucket

MANIFEST, PROPRIETARY = "models_manifest.json", "proprietary-sdk-manifest.json"
# SDK v2 reads the first entry of this manifest before it lists models; one that needs a later SDK is never listed.
_NO_PROPRIETARY_MODEL = {
    "model_id": "luthier-no-proprietary-model", "version": "0.0.0", "min_version": "9999.0.0",
    "spec_key": "proprietary-models/luthier-no-proprietary-model/proprietary_specs_0.0.0.json",
}  # fmt: skip
_NOTE = b"Luthier finds this model's weights by itself; this object stands for them.\n"
_EMPTY_TAR = gzip.compress(bytes(10240), mtime=0)


def bucket() -> VirtualBucket:
    """The cache buckets of all regions."""
    return VirtualBucket(pattern=BUCKETS, read=_read, keys=_keys)


def manifest() -> list[dict[str, str]]:
    """All ids in all versions, as SDK v2 reads them."""
    return [
        {"model_id": identity, "version": version, "min_version": MIN_SDK,
         "spec_key": object_key(identity, version, "spec.json")}
        for identity in sorted(entries_by_id())
        for version in VERSIONS
    ]  # fmt: skip


def _read(bucket: str, name: str) -> bytes | None:
    read = _objects(bucket, os.environ.get("LUTHIER_ENTRIES", "")).get(name)
    return read() if read else None


def _keys(bucket: str) -> Iterable[str]:
    return _objects(bucket, os.environ.get("LUTHIER_ENTRIES", ""))


@functools.lru_cache(maxsize=8)
def _objects(bucket: str, entries: str) -> Mapping[str, Callable[[], bytes]]:
    """{key: function that returns the object} of a cache bucket; `entries`: the folder of the user's entries."""
    region = region_of(bucket) or ""
    readers: dict[str, Callable[[], bytes]] = {}
    if not is_private(bucket):
        readers[MANIFEST] = lambda: _json(manifest())
        readers[PROPRIETARY] = lambda: _json([_NO_PROPRIETARY_MODEL])
    for identity, entry in entries_by_id().items():
        for version in VERSIONS:
            if not is_private(bucket):
                readers[object_key(identity, version, "spec.json")] = functools.partial(
                    _spec, entry, identity, version, region
                )
                readers[object_key(identity, version, "sourcedir.tar.gz")] = lambda: _EMPTY_TAR
            if entry.licence.eula:
                readers[object_key(identity, version, "eula.txt")] = functools.partial(_eula, entry)
            if entry.licence.eula == is_private(bucket):
                for folder in ("train", "infer"):
                    readers[object_key(identity, version, f"{folder}/README.txt")] = lambda: _NOTE
    return readers


def _spec(entry: Entry, identity: str, version: str, region: str) -> bytes:
    return _json(spec(entry, identity, version, region))


def _eula(entry: Entry) -> bytes:
    return f"{entry.name} is licensed under {entry.licence.name}: {entry.licence.url}\n".encode()


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode()
