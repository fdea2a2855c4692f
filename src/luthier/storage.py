"""Where rows and results lie: local folders, or s3:// behind the same few verbs.

S3 is asked by boto3, which finds credentials, region and AWS_ENDPOINT_URL in the environment as it always does. This
module knows bytes and names, nothing of what the files hold.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from luthier.errors import ObjectStoreUnreachableError, UserError

SCHEME = "s3://"
_BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests",
                   "TooManyRequestsException", "RequestLimitExceeded"})  # fmt: skip
T = TypeVar("T")


def is_remote(location: str) -> bool:
    """True for s3:// addresses, False for local paths; UserError for any other scheme."""
    if location.lower().startswith(SCHEME):
        return True
    scheme, found, _ = location.partition("://")
    if found and scheme.isalnum() and not Path(location).exists():
        raise UserError(f"{location}: {scheme}:// is not supported; expected a folder, a file, or s3://bucket/prefix")
    return False


def names(location: str, endpoint: str | None = None) -> list[str]:
    """The files at a location, sorted, relative to it: a folder's or prefix's, or the one file's own name.

    `endpoint`, here and below, is the URL of the S3 to ask in place of the environment's.
    """
    if not is_remote(location):
        root = Path(location)
        if root.is_file():
            return [root.name]
        if not root.is_dir():
            raise UserError(f"{location}: no such file or folder")
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    with s3(location, endpoint) as client:
        return sorted(name for _, name in _objects(client, location))


def download(location: str, folder: Path, endpoint: str | None = None) -> Path:
    """Copy the files at `location` into `folder`, keeping their names below it, and return `folder`.

    Every name is checked to stay inside `folder` before the first byte is written.
    """
    if not is_remote(location):
        sources = [(Path(location) if Path(location).is_file() else Path(location) / name, name)
                   for name in names(location)]  # fmt: skip
        _copy([(path, inside(folder, name, location)) for path, name in sources], shutil.copyfile)
        return folder
    bucket, _ = _split(location)
    with s3(location, endpoint) as client:
        objects = [(key, inside(folder, name, location)) for key, name in _objects(client, location)]
        _copy(objects, lambda key, target: client.download_file(bucket, key, str(target)))
    return folder


def upload(path: Path, location: str, endpoint: str | None = None) -> None:
    """Copy a file, or every file of a folder, to `location` (a file keeps its name below it)."""
    files = [(path / name if path.is_dir() else path, name) for name in names(str(path))]
    if not is_remote(location):
        _copy([(source, Path(location) / name) for source, name in files], shutil.copyfile)
        return
    bucket, prefix = _split(location)
    with s3(location, endpoint) as client:
        for source, name in files:
            client.upload_file(str(source), bucket, f"{prefix.rstrip('/')}/{name}".lstrip("/"))


def _copy(pairs: list[tuple[T, Path]], copy: Callable[[T, Path], Any]) -> None:
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(source, target)


def inside(folder: Path, name: str, location: str) -> Path:
    """The path of `name` below `folder`; UserError for a name that could leave it."""
    parts = name.split("/")
    if PurePosixPath(name).is_absolute() or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UserError(f"{location}: refusing the name {name!r}, which leaves the folder; rename the object")
    return folder / name


def _split(location: str) -> tuple[str, str]:
    bucket, _, prefix = location[len(SCHEME) :].partition("/")
    if not bucket:
        raise UserError(f"{location}: no bucket is named; expected s3://bucket/prefix")
    return bucket, prefix


def _objects(client: Any, location: str) -> Iterator[tuple[str, str]]:
    """(key, name below the prefix) of each object: the one of exactly that key, else all below `prefix/`.

    `s3://b/rows` therefore never takes in `rows-old/...`; keys ending in / are the console's folder marks.
    """
    bucket, prefix = _split(location)
    below = prefix if prefix == "" or prefix.endswith("/") else prefix + "/"
    found = False
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        if "IsTruncated" not in page:  # an answer that broke off: botocore takes it for an empty one
            raise ObjectStoreUnreachableError(f"the object store fails: the list of {location} broke off")
        for item in page.get("Contents", []):
            key = item["Key"]
            if key == prefix and not key.endswith("/"):
                yield key, PurePosixPath(key).name
                return
            if key.startswith(below) and not key.endswith("/"):
                found = True
                yield key, key[len(below) :]
    if not found:
        raise UserError(f"{location}: no objects are there")


@contextmanager
def s3(location: str, endpoint: str | None = None) -> Iterator[Any]:
    """boto3's S3 client; its errors leave as one line that names the address.

    ObjectStoreUnreachableError, naming the store, when a retry may succeed: no connection, a timeout, a server error.
    UserError otherwise.
    """
    # 0.2 s to import: only who asks for s3:// pays for it.
    boto3 = importlib.import_module("boto3")
    faults = importlib.import_module("botocore.exceptions")
    transfers = importlib.import_module("boto3.exceptions")
    try:
        # A session of its own: boto3's common one keeps its first credentials, and is not for several threads.
        yield boto3.Session().client("s3", endpoint_url=endpoint)
    except (faults.BotoCoreError, faults.ClientError, transfers.Boto3Error) as error:
        said = f"{location}: {' '.join(str(error).split())}"
        if _may_pass(error, faults, transfers):
            raise ObjectStoreUnreachableError(
                f"the object store {endpoint or 'of the environment'} fails: {said}"
            ) from error
        raise UserError(said) from error


def _may_pass(error: BaseException | None, faults: Any, transfers: Any) -> bool:
    """Whether an error of boto3's is none of the request's."""
    if isinstance(error, faults.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return error.response.get("Error", {}).get("Code") in _BUSY or (status >= 500 and status != 501)
    if isinstance(error, transfers.S3UploadFailedError):
        return _may_pass(error.__cause__ or error.__context__, faults, transfers)
    passing = (
        faults.ConnectionError, faults.HTTPClientError, faults.IncompleteReadError, transfers.RetriesExceededError
    )  # fmt: skip
    return isinstance(error, passing) and not isinstance(error, faults.SSLError)
