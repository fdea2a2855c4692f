"""Pages of a list: the filters and sort keys that every List operation shares, MaxResults, and the NextToken.

A token holds the place where the page before it ended and a digest of the list it belongs to: given to another list, or
changed by a character, it is refused.
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
    """How a List operation sorts when it is not told, and how many it answers at once."""

    sort: str = "CreationTime"
    descending: bool = True
    limit: int = 10


def list_page(
    call: Call, service: Service, kind: str, order: SortOrder, summary: Callable[[Resource], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One page of the caller's resources of a kind, each as `summary`, and the page's NextToken, if there is one."""
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
            created=(to_timestamp(request.get("CreationTimeAfter")), to_timestamp(request.get("CreationTimeBefore"))),
            modified=(
                to_timestamp(request.get("LastModifiedTimeAfter")),
                to_timestamp(request.get("LastModifiedTimeBefore")),
            ),
            sort=sort,
            descending=_descending(request, order),
            limit=request.get("MaxResults", order.limit),
            after=_place(call, str if sort != "created" else float),
        )
    )
    return [summary(resource) for resource in page.items], _token(call, page.after)


def slice_page(
    call: Call, items: Sequence[Any], limit: int, names: tuple[str, str] = ("NextToken", "MaxResults")
) -> tuple[list[Any], dict[str, Any]]:
    """One page of a list that is at hand as a whole, in its order, and the page's token, if there is one.

    `names` are those of the token and of the page's size in the service at hand.
    """
    place = _place(call, int, names[0])
    start = place[0] if place else 0
    end = start + call.parameters.get(names[1], limit)
    return list(items[start:end]), _token(call, (end, "") if end < len(items) else None, names[0])


def _token(call: Call, after: tuple[Any, str] | None, name: str = "NextToken") -> dict[str, Any]:
    """The token of the page after `after`, by its name; nothing where there is none."""
    if after is None:
        return {}
    text = json.dumps([*after, _digest(call, after)], separators=(",", ":"))
    return {name: base64.urlsafe_b64encode(text.encode()).decode()}


def _bounds(request: Mapping[str, Any], member: str) -> tuple[float | None, float | None]:
    return to_timestamp(request.get(f"{member}After")), to_timestamp(request.get(f"{member}Before"))


def _descending(request: Mapping[str, Any], order: SortOrder) -> bool:
    return bool(request["SortOrder"] == "Descending") if "SortOrder" in request else order.descending


def _place(call: Call, kind: type, name: str = "NextToken") -> tuple[Any, str] | None:
    """The place that the call's token names; ValidationException for one that is not this list's."""
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
    """Of the caller, the list's filters and the place; MaxResults may change from page to page."""
    filters = {name: str(value) for name, value in call.parameters.items() if name not in _PAGE}
    text = json.dumps([call.operation, call.account, call.region, filters, *after], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _invalid() -> WireError:
    return WireError("ValidationException", "Invalid pagination token")
