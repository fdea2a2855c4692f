"""SageMaker's public hub: its contents are the catalogue's base models, under their JumpStart ids."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from luthier.api.description import to_timestamp
from luthier.api.jumpstart.document import document
from luthier.api.paging import slice_page
from luthier.api.service import Service
from luthier.catalog import jumpstart as names
from luthier.catalog.entry import Entry
from luthier.errors import did_you_mean
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

SCHEMA = "2.3.0"
SINCE = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
PAGE_SIZE = 100
_KEYWORDS = 50


def describe_hub(call: Call, service: Service) -> dict[str, Any]:
    _check_hub(call)
    return _hub(call)


def list_hubs(call: Call, service: Service) -> dict[str, Any]:
    hubs = [_hub(call)] if call.parameters.get("NameContains", "") in names.HUB and _matches_time_filters(call) else []
    items, token = slice_page(call, hubs, PAGE_SIZE)
    return {"HubSummaries": items} | token


def describe_content(call: Call, service: Service) -> dict[str, Any]:
    _check_hub(call)
    request = call.parameters
    name, version = request["HubContentName"], request.get("HubContentVersion", names.LATEST)
    known = names.hub_contents()
    if request["HubContentType"] != "Model" or name not in known:
        kind = request["HubContentType"]
        close = did_you_mean(name, known) if kind == "Model" else ""
        raise WireError("ResourceNotFound", f"Could not find {kind} {name} in hub {names.HUB}{close}.")
    if version not in names.VERSIONS:
        raise WireError(
            "ResourceNotFound",
            f"Could not find version {version} of {name} in hub {names.HUB}; it has {', '.join(names.VERSIONS)}.",
        )
    return _content(call, name, known[name], version) | {
        "HubName": names.HUB,
        "HubArn": names.hub_arn(call.region),
        "HubContentMarkdown": known[name].description,
        "HubContentDocument": json.dumps(document(known[name], name, version, call.region)),
        "LastModifiedTime": SINCE,
    }


def list_contents(call: Call, service: Service) -> dict[str, Any]:
    _check_hub(call)
    request = call.parameters
    known = names.hub_contents() if request["HubContentType"] == "Model" and _matches_time_filters(call) else {}
    ordered = sorted((name for name in known if request.get("NameContains", "") in name),
                     reverse=request.get("SortOrder") == "Descending")  # fmt: skip
    items, token = slice_page(call, ordered, PAGE_SIZE)
    return {"HubContentSummaries": [_content(call, name, known[name], names.LATEST) for name in items]} | token


def _hub(call: Call) -> dict[str, Any]:
    return {
        "HubName": names.HUB,
        "HubArn": names.hub_arn(call.region),
        "HubDisplayName": "Luthier's catalogue",
        "HubDescription": "The base models that can be fine-tuned here",
        "HubStatus": "InService",
        "CreationTime": SINCE,
        "LastModifiedTime": SINCE,
    }


def _content(call: Call, name: str, entry: Entry, version: str) -> dict[str, Any]:
    """The members that a description and a list of a content share."""
    return {
        "HubContentName": name,
        "HubContentArn": names.content_arn(name, version, call.region),
        "HubContentVersion": version,
        "HubContentType": "Model",
        "DocumentSchemaVersion": SCHEMA,
        "HubContentDisplayName": entry.name,
        "HubContentDescription": f"{entry.name}, {entry.licence.name}",
        "HubContentSearchKeywords": ["@framework:huggingface", *(f"@kind:{kind}" for kind in entry.kinds)][:_KEYWORDS],
        "HubContentStatus": "Available",
        "SupportStatus": "Supported",
        "CreationTime": SINCE,
    }


def _matches_time_filters(call: Call) -> bool:
    """Whether the request's time filters include SINCE."""
    request = call.parameters
    after = (to_timestamp(request.get(name)) for name in ("CreationTimeAfter", "LastModifiedTimeAfter"))
    before = (to_timestamp(request.get(name)) for name in ("CreationTimeBefore", "LastModifiedTimeBefore"))
    return all(moment is None or moment <= SINCE for moment in after) and all(
        moment is None or moment >= SINCE for moment in before
    )


def _check_hub(call: Call) -> None:
    """Raise ResourceNotFound unless HubName is the public hub's name or ARN."""
    hub = call.parameters["HubName"]
    if hub not in (names.HUB, names.hub_arn(call.region)):
        raise WireError("ResourceNotFound", f"Could not find hub {hub}; there is {names.HUB} only.")


OPERATIONS = {
    "DescribeHub": describe_hub,
    "ListHubs": list_hubs,
    "DescribeHubContent": describe_content,
    "ListHubContents": list_contents,
}
