"""Validate and parse bucket names, keys, s3:// URIs and copy sources."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

from luthier.errors import UserError
from luthier.objects.errors import s3_error

KEY_BYTES = 1024
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RESERVED = ("xn--", "sthree-", "amzn-s3-demo-"), ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def check_bucket_name(name: str) -> str:
    """`name` if S3's rules allow it; WireError InvalidBucketName otherwise."""
    if not _BUCKET.fullmatch(name) or ".." in name or name.startswith(_RESERVED[0]) or name.endswith(_RESERVED[1]):
        raise s3_error("InvalidBucketName")
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return name
    raise s3_error("InvalidBucketName")


def key_bytes(key: str) -> bytes:
    """A key as it is stored and sorted: UTF-8, 1 to 1,024 bytes; WireError for others."""
    encoded = text_bytes(key)
    if len(encoded) > KEY_BYTES:
        raise s3_error("KeyTooLongError")
    if not encoded:
        raise s3_error("InvalidRequest", "A key must have at least one character")
    return encoded


def text_bytes(text: str) -> bytes:
    """Text that is compared with keys (a prefix, a marker), as UTF-8."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise s3_error("InvalidURI") from None


def parse_uri(uri: str) -> tuple[str, str]:
    """(bucket, key or prefix) of s3://bucket/key; UserError for anything else."""
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if not separator or scheme.lower() != "s3" or not bucket:
        raise UserError(f"{uri}: expected s3://bucket/key")
    return bucket, key


def parse_copy_source(source: str) -> tuple[str, str]:
    """(bucket, key) of x-amz-copy-source; WireError for an incomplete one or an unknown version."""
    path, _, version = source.partition("?versionId=")
    bucket, _, key = unquote(path, errors="surrogateescape").removeprefix("/").partition("/")
    if not bucket or not key:
        raise s3_error("InvalidArgument", "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
    check_version(version)
    return bucket, key


def check_version(version: str | None) -> None:
    """WireError NoSuchVersion for any version but `null`, the only one without versioning."""
    if version not in (None, "", "null"):
        raise s3_error("NoSuchVersion")
