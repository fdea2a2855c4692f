"""Lists and copies files of local folders and s3:// addresses with the same functions.

S3 is accessed by boto3, which reads credentials, region and AWS_ENDPOINT_URL from the environment.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from luthier.errors import NoObjectsError, ObjectStoreUnreachableError, UserError

SCHEME = "s3://"
_RETRYABLE_CODES = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests",
                   "TooManyRequestsException", "RequestLimitExceeded"})  # fmt: skip
T = TypeVar("T")


def is_remote(location: str) -> bool:
    """Whether `location` is an s3:// address rather than a local path; UserError for other schemes."""
    if location.lower().startswith(SCHEME):
        return True
    scheme, separator, _ = location.partition("://")
    if separator and scheme.isalnum() and not Path(location).exists():
        raise UserError(f"{location}: {scheme}:// is not supported; expected a folder, a file, or s3://bucket/prefix")
    return False


def names(location: str, endpoint: str | None = None) -> list[str]:
    """Return the sorted relative names of the files at a location; of a single file, its own name.

    `endpoint`, here and below, overrides the environment's S3 URL.
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
    """Copy the files at `location` into `folder` with their relative names, and return `folder`.

    All names are checked to stay inside `folder` before anything is written.
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
    """Copy a file, or all files of a folder, to `location` with their relative names."""
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
    """Return the path of `name` in `folder`; UserError for a name that leads out of it."""
    parts = name.split("/")
    if PurePosixPath(name).is_absolute() or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UserError(f"{location}: refusing the name {name!r}, which leads out of the folder; rename the object")
    return folder / name


def _split(location: str) -> tuple[str, str]:
    bucket, _, prefix = location[len(SCHEME) :].partition("/")
    if not bucket:
        raise UserError(f"{location}: no bucket; expected s3://bucket/prefix")
    return bucket, prefix


def _objects(client: Any, location: str) -> Iterator[tuple[str, str]]:
    """Yield (key, relative name) of the object with exactly that key, else of all objects below `prefix/`, else of
    those whose key begins with the prefix.

    `s3://b/rows` thus includes `rows-old/...` only where nothing is below `rows/`. Keys that end in / are the console's
    folder markers.
    """
    bucket, prefix = _split(location)
    below = prefix if prefix == "" or prefix.endswith("/") else prefix + "/"
    is_empty = True
    beginning: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        if "IsTruncated" not in page:  # an incomplete response, which botocore parses as an empty one
            raise ObjectStoreUnreachableError(f"the object store fails: incomplete list of {location}")
        for item in page.get("Contents", []):
            key = item["Key"]
            if key == prefix and not key.endswith("/"):
                yield key, PurePosixPath(key).name
                return
            if key.startswith(below) and not key.endswith("/"):
                is_empty = False
                yield key, key[len(below) :]
            elif is_empty and not key.endswith("/"):
                beginning.append(key)
    if is_empty and not beginning:
        raise NoObjectsError(f"{location}: no objects found")
    if is_empty:
        yield from ((key, key[prefix.rfind("/") + 1 :]) for key in beginning)


@contextmanager
def s3(location: str, endpoint: str | None = None) -> Iterator[Any]:
    """Yield boto3's S3 client; its errors become one line that names the address.

    ObjectStoreUnreachableError, naming the store, when a retry may succeed: no connection, a timeout, a server error.
    UserError otherwise.
    """
    # Importing takes 0.2 s, so only for s3:// addresses.
    boto3 = importlib.import_module("boto3")
    faults = importlib.import_module("botocore.exceptions")
    transfers = importlib.import_module("boto3.exceptions")
    try:
        # A new session: boto3's default one caches its first credentials and is not thread-safe.
        yield boto3.Session().client("s3", endpoint_url=endpoint)
    except (faults.BotoCoreError, faults.ClientError, transfers.Boto3Error) as error:
        message = f"{location}: {' '.join(str(error).split())}"
        if _is_retryable(error, faults, transfers):
            raise ObjectStoreUnreachableError(
                f"the object store {endpoint or 'of the environment'} fails: {message}"
            ) from error
        raise UserError(message) from error


def _is_retryable(error: BaseException | None, faults: Any, transfers: Any) -> bool:
    """Whether a retry may succeed after this error of boto3."""
    if isinstance(error, faults.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return error.response.get("Error", {}).get("Code") in _RETRYABLE_CODES or (status >= 500 and status != 501)
    if isinstance(error, transfers.S3UploadFailedError):
        return _is_retryable(error.__cause__ or error.__context__, faults, transfers)
    retryable = (
        faults.ConnectionError, faults.HTTPClientError, faults.IncompleteReadError, transfers.RetriesExceededError
    )  # fmt: skip
    return isinstance(error, retryable) and not isinstance(error, faults.SSLError)
