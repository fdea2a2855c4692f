"""Conditional requests: whether an object's state allows a read or a write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luthier.objects.errors import failed_condition, s3_error


@dataclass(frozen=True, slots=True)
class WriteCondition:
    """What must be true of the current object for a write: its ETag, or that there is none."""

    etag: str | None = None
    absent: bool = False

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> WriteCondition:
        """From IfMatch and IfNoneMatch; S3 supports only `*` for the latter."""
        none = parameters.get("IfNoneMatch")
        if none not in (None, "*"):
            raise s3_error("NotImplemented")
        return cls(parameters.get("IfMatch"), none == "*")

    def check(self, present: str | None) -> None:
        """WireError NoSuchKey or PreconditionFailed; `present` is the current ETag, None for no object."""
        if self.absent and present is not None:
            raise failed_condition("If-None-Match")
        if self.etag is not None:
            if present is None:
                raise s3_error("NoSuchKey")
            if not _matches(self.etag, present):
                raise failed_condition("If-Match")


UNCONDITIONAL = WriteCondition()


def check_read(parameters: Mapping[str, Any], etag: str, modified: float, prefix: str = "") -> None:
    """WireError NotModified or PreconditionFailed by the four headers (`prefix` "CopySource" for a copy's).

    ETags take precedence over times, which are compared in whole seconds, as in headers. For a copy's source, "not
    modified" is a failed precondition, too.
    """
    match, none = parameters.get(f"{prefix}IfMatch"), parameters.get(f"{prefix}IfNoneMatch")
    since, until = parameters.get(f"{prefix}IfModifiedSince"), parameters.get(f"{prefix}IfUnmodifiedSince")
    header = "x-amz-copy-source-If" if prefix else "If"
    if match is not None:
        if not _matches(match, etag):
            raise failed_condition(f"{header}-Match")
    elif until is not None and int(modified) > _seconds(until):
        raise failed_condition(f"{header}-Unmodified-Since")
    if none is not None:
        if _matches(none, etag):
            raise failed_condition(f"{header}-None-Match") if prefix else s3_error("NotModified")
    elif since is not None and int(modified) <= _seconds(since):
        raise failed_condition(f"{header}-Modified-Since") if prefix else s3_error("NotModified")


def strip_etag(etag: str) -> str:
    """An ETag without its quotes."""
    return etag.strip().removeprefix("W/").strip('"')


def _matches(header: str, etag: str) -> bool:
    return any(one.strip() == "*" or strip_etag(one) == etag for one in header.split(","))


def _seconds(time: datetime) -> int:
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())
