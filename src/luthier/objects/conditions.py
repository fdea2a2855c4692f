"""Conditional requests: whether what is there allows the read or the write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luthier.objects.errors import refusal


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold of the present object for a write to go ahead: its ETag, or that there is none."""

    etag: str | None = None
    absent: bool = False

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Guard:
        """From IfMatch and IfNoneMatch; of the latter S3 takes only `*`."""
        none = parameters.get("IfNoneMatch")
        if none not in (None, "*"):
            raise refusal("NotImplemented")
        return cls(parameters.get("IfMatch"), none == "*")

    def check(self, present: str | None) -> None:
        """WireError NoSuchKey or PreconditionFailed; `present` is the ETag of what is there, None for nothing."""
        if self.absent and present is not None:
            raise refusal("PreconditionFailed")
        if self.etag is not None:
            if present is None:
                raise refusal("NoSuchKey")
            if not _matches(self.etag, present):
                raise refusal("PreconditionFailed")


ANYHOW = Guard()


def check_read(parameters: Mapping[str, Any], etag: str, modified: float, prefix: str = "") -> None:
    """WireError NotModified or PreconditionFailed by the four headers (`prefix` "CopySource" for a copy's).

    An ETag that was compared decides alone; times count whole seconds, as the headers do. Of a copy's source,
    "not modified" is a failed precondition too.
    """
    match, none = parameters.get(f"{prefix}IfMatch"), parameters.get(f"{prefix}IfNoneMatch")
    since, until = parameters.get(f"{prefix}IfModifiedSince"), parameters.get(f"{prefix}IfUnmodifiedSince")
    same = "PreconditionFailed" if prefix else "NotModified"
    if match is not None:
        if not _matches(match, etag):
            raise refusal("PreconditionFailed")
    elif until is not None and int(modified) > _seconds(until):
        raise refusal("PreconditionFailed")
    if none is not None:
        if _matches(none, etag):
            raise refusal(same)
    elif since is not None and int(modified) <= _seconds(since):
        raise refusal(same)


def bare(etag: str) -> str:
    """An ETag without its quotes."""
    return etag.strip().removeprefix("W/").strip('"')


def _matches(header: str, etag: str) -> bool:
    return any(one.strip() == "*" or bare(one) == etag for one in header.split(","))


def _seconds(moment: datetime) -> int:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
