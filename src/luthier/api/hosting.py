"""Lookup and creation of models, endpoint configs and endpoints, with AWS's errors.

Clients match on the texts: `Could not find` and `Cannot create already existing`.
"""

from __future__ import annotations

from typing import Any

from luthier.api.description import request_members
from luthier.api.paging import SortOrder, list_page
from luthier.api.service import Operations, Service
from luthier.api.tags import request_tags
from luthier.jobs.progress import Progress
from luthier.jobs.resource import Resource
from luthier.jobs.states import ENDPOINT, ENDPOINT_CONFIG, MODEL
from luthier.jobs.store import NameInUseError
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

WORDS = {MODEL: "model", ENDPOINT_CONFIG: "endpoint configuration", ENDPOINT: "endpoint"}


def find(call: Call, service: Service, kind: str, name: str) -> Resource:
    """The caller's resource; ValidationException with AWS's text if there is none."""
    resource = service.store.find(kind, (call.account, call.region), name)
    if resource is None:
        raise WireError("ValidationException", f'Could not find {WORDS[kind]} "{call.arn(kind, name)}".')
    return resource


def create(call: Call, service: Service, kind: str, name: str, progress: Progress | None = None) -> Resource:
    """Store the call's request as a new resource, with its tags; ValidationException when the name is in use."""
    request = {member: value for member, value in call.parameters.items() if member != "Tags"}
    owner, labels = call.creator, request_tags(call)
    try:
        return service.store.create(kind, owner, name, request, progress=progress, labels=labels)
    except NameInUseError:
        raise WireError(
            "ValidationException", f'Cannot create already existing {WORDS[kind]} "{call.arn(kind, name)}".'
        ) from None


def describe_list_delete(kind: str, noun: str) -> Operations:
    """Describe, List and Delete of a kind without a lifecycle, described by its request.

    Endpoints keep working when their config or model is deleted, because they hold copies of what they need.
    """

    def summary(resource: Resource) -> dict[str, Any]:
        return {f"{noun}Name": resource.name, f"{noun}Arn": resource.arn, "CreationTime": resource.created}

    def describe(call: Call, service: Service) -> dict[str, Any]:
        resource = find(call, service, kind, call.parameters[f"{noun}Name"])
        return request_members(resource, f"Describe{noun}") | summary(resource)

    def list_(call: Call, service: Service) -> dict[str, Any]:
        items, token = list_page(call, service, kind, SortOrder(), summary)
        return {f"{noun}s": items} | token

    def delete(call: Call, service: Service) -> dict[str, Any]:
        service.store.delete(find(call, service, kind, call.parameters[f"{noun}Name"]).id)
        return {}

    return {f"Describe{noun}": describe, f"List{noun}s": list_, f"Delete{noun}": delete}
