"""The object store behind the real wire, for boto3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from live_wire import LiveWire, live_wire

from luthier.jobs.store import Store
from luthier.objects.operations import OPERATIONS
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.objects.virtual import VirtualBucket

CACHE = {"models_manifest.json": b"[]", "specs/a.json": b"{}", "specs/b.json": b'{"b": 1}'}
VIRTUAL = VirtualBucket(
    pattern=r"jumpstart-cache-prod-[a-z0-9-]+", read=lambda bucket, key: CACHE.get(key), keys=lambda bucket: CACHE
)


@dataclass(frozen=True, slots=True)
class LiveObjects:
    """A running server and what is behind it."""

    wire: LiveWire
    objects: EmbeddedObjectStore

    def client(self, **options: Any) -> Any:
        return self.wire.client("s3", **{"region_name": "us-east-1", **options})


@contextmanager
def open_objects(url: str, home: Path) -> Iterator[EmbeddedObjectStore]:
    """A store of its own."""
    store = Store.open(url)
    try:
        yield EmbeddedObjectStore(store.engine, home / "objects", [VIRTUAL])
    finally:
        store.close()


@contextmanager
def serve_objects(objects: ObjectStore) -> Iterator[LiveWire]:
    """S3's operations on `objects`, on a free port."""
    with live_wire(operations={"s3": OPERATIONS}) as wire:
        wire.echo.answers = {name: partial(_answer, name, objects) for name in OPERATIONS}
        yield wire


def _answer(name: str, objects: ObjectStore, call: Any) -> Any:
    return OPERATIONS[name](call, objects)


@contextmanager
def live_objects(url: str, home: Path) -> Iterator[LiveObjects]:
    with open_objects(url, home) as objects, serve_objects(objects) as wire:
        yield LiveObjects(wire, objects)
