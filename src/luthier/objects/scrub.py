"""Checks the object store: each object's files are there, whole, and hold the bytes that were stored.

``python -m luthier.objects.scrub`` runs `luthier objects check` with its request on stdin: {"home", "database",
"quick", "json"}. It only reads, so the service may run meanwhile. Exit code 1 if an object is damaged.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from luthier import entrypoint
from luthier.errors import UserError
from luthier.jobs import database
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import database_file
from luthier.objects import queries
from luthier.objects.blobs import CHUNK, SHARDS, Blobs
from luthier.objects.queries import Segment
from luthier.objects.tables import objects

MISSING, TRUNCATED, CHANGED = "missing", "truncated", "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedObject:
    """An object that cannot be read as it was stored. `problem` is missing, truncated or changed; `file` the path."""

    bucket: str
    key: str
    problem: str
    file: str


@dataclass(slots=True, kw_only=True)
class ScrubResult:
    """What a check found; `orphans` are files that belong to no object or upload, and are removed by the service."""

    checked: int = 0
    bytes: int = 0
    damaged: list[DamagedObject] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def scrub(engine: sa.Engine, blobs: Blobs, *, quick: bool = False) -> ScrubResult:
    """Check every object; `quick` compares sizes only, without reading the files.

    An object that is replaced or deleted meanwhile is not reported.
    """
    result = ScrubResult()
    for bucket, key, content, etag in _rows(engine):
        problem = _check_content(engine, blobs, content, "" if quick else etag, result)
        if problem is not None and _is_current(engine, bucket, key, content):
            name, file = problem
            result.damaged.append(DamagedObject(bucket=bucket, key=_text(key), problem=name, file=str(file)))
        result.checked += 1
    result.orphans = list(_orphans(engine, blobs))
    return result


def _rows(engine: sa.Engine) -> Iterator[tuple[str, bytes, str, str]]:
    """Bucket, key, content and ETag of every object, in pages, so that no transaction stays open."""
    after: tuple[str, bytes] = ("", b"")
    columns = objects.c.bucket, objects.c.key, objects.c.content, objects.c.etag
    while True:
        query = sa.select(*columns).where(sa.tuple_(objects.c.bucket, objects.c.key) > sa.tuple_(*after))
        with engine.connect() as connection:
            page = connection.execute(query.order_by(objects.c.bucket, objects.c.key).limit(500)).all()
        for row in page:
            yield row.bucket, bytes(row.key), row.content, row.etag
        if not page:
            return
        after = (page[-1].bucket, bytes(page[-1].key))


def _check_content(
    engine: sa.Engine, blobs: Blobs, content: str, etag: str, result: ScrubResult
) -> tuple[str, Path] | None:
    """The problem of a content and the file that has it; None for none. Without `etag` only sizes are compared."""
    with engine.connect() as connection:
        segments = queries.content_segments(connection, content)
    for segment in segments:
        path = blobs.path(segment.blob)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return MISSING, path
        if size != segment.size:
            return TRUNCATED if size < segment.size else CHANGED, path
    if etag and segments and not _matches(blobs, segments, etag, result):
        return CHANGED, blobs.path(segments[0].blob)
    return None


def _matches(blobs: Blobs, segments: Sequence[Segment], etag: str, result: ScrubResult) -> bool:
    """Whether the bytes have the ETag: their MD5, or the MD5 of their parts' MD5s and the number of parts."""
    whole, digests = hashlib.md5(usedforsecurity=False), b""
    for segment in segments:
        part = hashlib.md5(usedforsecurity=False)
        with open(blobs.path(segment.blob), "rb") as handle:
            while chunk := handle.read(CHUNK):
                whole.update(chunk)
                part.update(chunk)
                result.bytes += len(chunk)
        digests += part.digest()
    of_parts = hashlib.md5(digests, usedforsecurity=False).hexdigest()
    return etag in (whole.hexdigest(), f"{of_parts}-{len(segments)}")


def _is_current(engine: sa.Engine, bucket: str, key: bytes, content: str) -> bool:
    with engine.connect() as connection:
        stored = queries.find_object(connection, bucket, key)
    return stored is not None and stored.content == content


def _orphans(engine: sa.Engine, blobs: Blobs) -> Iterator[str]:
    for shard in SHARDS:
        names = {path.name for path in (blobs.root / "blobs" / shard).iterdir()}
        if names:
            with engine.connect() as connection:
                known = queries.referenced_blobs(connection, shard)
            yield from (str(blobs.path(name)) for name in sorted(names - known) if blobs.path(name).exists())


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")


def main() -> int:
    """Run the request and print the result; return the exit code."""
    request = json.load(sys.stdin)
    settings = ServiceSettings(home=Path(request["home"]), database=request["database"])
    file = database_file(settings.database_url)
    root = settings.home / "objects"
    if (file is not None and not file.exists()) or not root.is_dir():
        raise UserError(f"{settings.home}: no service with an object store; expected the --home of a service")
    engine = database.connect(settings.database_url)
    try:
        result = scrub(engine, Blobs(root), quick=request["quick"])
    finally:
        engine.dispose()
    print(json.dumps(asdict(result), indent=1) if request["json"] else _render(result))  # noqa: T201
    return 1 if result.damaged else 0


def _render(result: ScrubResult) -> str:
    lines: list[Any] = [f"s3://{one.bucket}/{one.key}: {one.problem}: {one.file}" for one in result.damaged]
    read = f", {result.bytes:,} bytes read" if result.bytes else ""
    lines.append(f"{result.checked:,} objects checked{read}: {len(result.damaged):,} damaged")
    if result.orphans:
        lines.append(f"{len(result.orphans):,} files belong to no object; the service removes them when it sweeps")
    if result.damaged:
        lines.append("restore the files from a backup, or delete these objects and upload them again")
    return "\n".join(lines)


if __name__ == "__main__":
    entrypoint.run(lambda: sys.exit(main()))
