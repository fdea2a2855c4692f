"""Processes that write objects and note each acknowledgement, for tests that kill them.

Run as a program, it forks a writer for every line on stdin, the arguments of `write` as JSON, and prints its id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from luthier.jobs import database
from luthier.objects.conditions import UNCONDITIONAL
from luthier.objects.queries import Attributes, StoredObject
from luthier.objects.store import EmbeddedObjectStore
from luthier.objects.uploads import CompletedPart, ExpectedObject, Uploads

PART = 5 * 1024**2


def content(key: str) -> bytes:
    """What the object of a key holds: told by the key alone."""
    size = 3 * int(hashlib.md5(key.encode()).hexdigest()[:4], 16)
    size = PART + size if key.startswith("upload") else size
    return random.Random(key).randbytes(1000) * (size // 1000 + 1)


def in_pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), 65536):
        yield data[at : at + 65536]


def write(url: str, root: str, notes: str, writer: str) -> None:
    """Write, copy, delete and upload until killed; a line of `notes` for each operation that returned."""
    objects = EmbeddedObjectStore(database.connect(url), Path(root))
    chosen = random.Random(writer)
    with open(notes, "a", buffering=1) as log:
        for number in itertools.count():
            verb = chosen.choice(["put", "put", "put", "copy", "copy", "delete", "delete", "hot", "hot", "upload"])
            log.write(f"{verb} {_done(objects, verb, f'{writer}-{number}')}\n")


def _done(objects: EmbeddedObjectStore, verb: str, name: str) -> str:
    """Do one operation; what to look for afterwards."""
    if verb == "upload":
        key = f"upload-{name}"
        _upload(objects, key)
    elif verb == "copy":
        key = f"copy-{name}"
        objects.put("room", key, in_pieces(content(key)))
        with objects.open("room", key) as source:
            objects.copy(
                source, StoredObject(bucket="room", key=f"{key}/again", content="", size=0, etag="", modified=0.0)
            )
    elif verb == "delete":
        key = f"delete-{name}"
        objects.put("room", key, in_pieces(content(key)))
        objects.delete("room", [(key, UNCONDITIONAL)])
    elif verb == "hot":
        key = "hot"
        objects.put("room", key, in_pieces(content(f"hot-{name}")), Attributes(metadata={"of": f"hot-{name}"}))
        return name
    else:
        key = f"put-{name}"
        objects.put("room", key, in_pieces(content(key)))
    return key


def _upload(objects: EmbeddedObjectStore, key: str) -> None:
    data, uploads = content(key), Uploads(objects)
    begun = uploads.begin("room", key, Attributes())
    listed = []
    for number, part in enumerate((data[:PART], data[PART:]), 1):
        listed.append(CompletedPart(number, uploads.put_part(begun, number, in_pieces(part)).etag))
    uploads.complete("room", key, begun.id, listed, ExpectedObject())


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed are not waited for
    for line in sys.stdin:
        database.connect(json.loads(line)[0]).dispose()  # imports what the writers need, before they are forked
        child = os.fork()
        if not child:
            write(*json.loads(line))
        print(child, flush=True)


if __name__ == "__main__":
    main()
