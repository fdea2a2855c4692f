"""Tags of resources, by ARN: at most 50 each."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from luthier.api.paging import slice_page
from luthier.api.service import Service
from luthier.jobs.resource import Resource
from luthier.jobs.states import STATES
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

MAX_TAGS = 50
_ARN = re.compile(r"arn:aws[a-z-]*:sagemaker:([a-z0-9-]+):(\d{12}):([a-z-]+)/([A-Za-z0-9-]{1,63})")


def request_tags(call: Call) -> dict[str, str]:
    """The tags of a request; ValidationException for a repeated key."""
    tags = call.parameters.get("Tags", [])
    for key, count in Counter(tag["Key"] for tag in tags).items():
        if count > 1:
            raise WireError("ValidationException", f"Tag keys must be unique: {key!r} is given {count} times.")
    return {tag["Key"]: tag["Value"] for tag in tags}


def add(call: Call, service: Service) -> dict[str, Any]:
    resource = _find_resource(call, service)
    added = request_tags(call)
    present = service.store.tags(resource.arn)
    if len(present | added) > MAX_TAGS:
        count = len(present | added)
        raise WireError(
            "ResourceLimitExceeded", f"{resource.arn} would have {count} tags; a resource has at most {MAX_TAGS}"
        )
    service.store.add_tags(resource.arn, added)
    return {"Tags": _to_members(present | added)}


def list_(call: Call, service: Service) -> dict[str, Any]:
    items, token = slice_page(call, _to_members(service.store.tags(_find_resource(call, service).arn)), MAX_TAGS)
    return {"Tags": items} | token


def delete(call: Call, service: Service) -> dict[str, Any]:
    service.store.delete_tags(_find_resource(call, service).arn, call.parameters["TagKeys"])
    return {}


def _to_members(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _find_resource(call: Call, service: Service) -> Resource:
    """The caller's resource with the request's ARN; ValidationException if there is none."""
    arn = call.parameters["ResourceArn"]
    match = _ARN.fullmatch(arn)
    if match is None or match[3] not in STATES or (match[1], match[2]) != (call.region, call.account):
        raise WireError("ValidationException", f"Invalid ARN {arn}: expected that of a resource in {call.region}.")
    owner = call.account, call.region
    resource = service.store.find(match[3], owner, match[4]) or service.store.of_arn(arn)
    if resource is None:
        raise WireError("ValidationException", f"Could not find resource {arn}.")
    return resource


OPERATIONS = {"AddTags": add, "ListTags": list_, "DeleteTags": delete}
