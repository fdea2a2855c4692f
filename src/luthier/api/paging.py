"""Pages of a list: the filters and sort keys that every List operation shares, MaxResults, and the NextToken.

A token holds the position where the previous page ended and a digest of the list it belongs to; a token of another
list, or a changed one, is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.api.description import to_timestamp
from luthier.api.service import Service
from luthier.jobs.resource import Resource
from luthier.jobs.store import Listing
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

SORTS = {"Name": "name", "CreationTime": "created", "Status": "status"}
_PAGE = ("NextToken", "MaxResults", "nextToken", "limit")


@dataclass(frozen=True, slots=True)
class SortOrder:
    """The default sort order and page size of a List operation."""

    sort: str = "CreationTime"
    descending: bool = True
    limit: int = 10


def list_page(
    call: Call, service: Service, kind: str, order: SortOrder, summary: Callable[[Resource], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return one page of the caller's resources of a kind, each as its `summary`, and its NextToken, if any."""
    request = call.parameters
    statuses = (request["StatusEquals"],) if request.get("StatusEquals") else ()
    sort = SORTS[request.get("SortBy", order.sort)]
    page = service.store.list(
        Listing(
            kind=kind,
            account=call.account,
            region=call.region,
            name_contains=request.get("NameContains", ""),
            statuses=statuses,
            created=_bounds(request, "CreationTime"),
            modified=_bounds(request, "LastModifiedTime"),
            sort=sort,
            descending=_descending(request, order),
            limit=request.get("MaxResults", order.limit),
            after=_position(call, str if sort != "created" else float),
        )
    )
    return [summary(resource) for resource in page.items], _token(call, page.after)


def slice_page(
    call: Call, items: Sequence[Any], limit: int, names: tuple[str, str] = ("NextToken", "MaxResults")
) -> tuple[list[Any], dict[str, Any]]:
    """Return one page of `items`, in their order, and its token, if any.

    `names` are the service's names of the token and of the page size.
    """
    position = _position(call, int, names[0])
    start = position[0] if position else 0
    end = start + call.parameters.get(names[1], limit)
    return list(items[start:end]), _token(call, (end, "") if end < len(items) else None, names[0])


def _token(call: Call, after: tuple[Any, str] | None, name: str = "NextToken") -> dict[str, Any]:
    """{name: token of the page after `after`}; empty on the last page."""
    if after is None:
        return {}
    text = json.dumps([*after, _digest(call, after)], separators=(",", ":"))
    return {name: base64.urlsafe_b64encode(text.encode()).decode()}


def _bounds(request: Mapping[str, Any], member: str) -> tuple[float | None, float | None]:
    return to_timestamp(request.get(f"{member}After")), to_timestamp(request.get(f"{member}Before"))


def _descending(request: Mapping[str, Any], order: SortOrder) -> bool:
    return bool(request["SortOrder"] == "Descending") if "SortOrder" in request else order.descending


def _position(call: Call, kind: type, name: str = "NextToken") -> tuple[Any, str] | None:
    """The position that the call's token holds; ValidationException for a token of another list."""
    token = call.parameters.get(name)
    if not token:
        return None
    try:
        value, identity, digest = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise _invalid() from None
    if digest != _digest(call, (value, identity)) or type(value) is not kind or type(identity) is not str:
        raise _invalid()
    return value, identity


def _digest(call: Call, after: tuple[Any, str]) -> str:
    """Digest of the caller, the list's filters and the position; MaxResults may change between pages."""
    filters = {name: str(value) for name, value in call.parameters.items() if name not in _PAGE}
    text = json.dumps([call.operation, call.account, call.region, filters, *after], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _invalid() -> WireError:
    return WireError("ValidationException", "Invalid pagination token")
