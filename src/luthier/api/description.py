"""Parts of Describe responses: members of the stored request, timestamps and the failure reason."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from luthier.jobfolder import shorten_failure
from luthier.jobs.resource import Resource
from luthier.protocol import model


def request_members(resource: Resource, operation: str) -> dict[str, Any]:
    """The members of the stored request that the response of SageMaker's `operation` also has."""
    members = _members(operation)
    return {name: value for name, value in resource.request.items() if name in members}


@functools.cache
def _members(operation: str) -> frozenset[str]:
    shape = model.operation("sagemaker", operation).output_shape
    return frozenset(shape.members) if shape is not None else frozenset()


def drop_none(members: Mapping[str, Any]) -> dict[str, Any]:
    """The members without those that are None."""
    return {name: value for name, value in members.items() if value is not None}


def to_timestamp(moment: Any) -> float | None:
    """A timestamp of a request as seconds since 1970; None for None."""
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None if moment is None else float(moment)


def failure_reason(text: str | None) -> str | None:
    """The FailureReason, shortened to the API's limit; the log has the whole text."""
    return shorten_failure(text) if text else None
