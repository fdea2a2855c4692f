"""What models, endpoint configs and endpoints have in common: how they are found and made, and what AWS then says.

Clients match on the texts: `Could not find` and `Cannot create already existing`.
"""

from __future__ import annotations

from typing import Any

from luthier.api.description import described
from luthier.api.paging import SortOrder, listed
from luthier.api.service import Operations, Service
from luthier.api.tags import given_tags
from luthier.jobs.progress import Progress
from luthier.jobs.resource import Resource
from luthier.jobs.states import ENDPOINT, ENDPOINT_CONFIG, MODEL
from luthier.jobs.store import NameInUseError
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

WORDS = {MODEL: "model", ENDPOINT_CONFIG: "endpoint configuration", ENDPOINT: "endpoint"}


def find(call: Call, service: Service, kind: str, name: str) -> Resource:
    """The caller's resource; ValidationException, as AWS words it, where there is none of that name."""
    found = service.store.find(kind, (call.account, call.region), name)
    if found is None:
        raise WireError("ValidationException", f'Could not find {WORDS[kind]} "{call.arn(kind, name)}".')
    return found


def make(call: Call, service: Service, kind: str, name: str, progress: Progress | None = None) -> Resource:
    """Store the call's request as a new resource, with its tags; ValidationException when the name is taken."""
    request = {member: value for member, value in call.parameters.items() if member != "Tags"}
    owner, labels = (call.account, call.region), given_tags(call)
    try:
        return service.store.create(kind, owner, name, request, progress=progress, labels=labels)
    except NameInUseError:
        raise WireError(
            "ValidationException", f'Cannot create already existing {WORDS[kind]} "{call.arn(kind, name)}".'
        ) from None


def plain(kind: str, noun: str) -> Operations:
    """Describe, List and Delete of a kind that nothing becomes of: its request is all there is to tell.

    Endpoints go on when what they were made of is deleted: they hold what they need of it.
    """

    def summary(found: Resource) -> dict[str, Any]:
        return {f"{noun}Name": found.name, f"{noun}Arn": found.arn, "CreationTime": found.created}

    def describe(call: Call, service: Service) -> dict[str, Any]:
        found = find(call, service, kind, call.parameters[f"{noun}Name"])
        return described(found, f"Describe{noun}") | summary(found)

    def list_(call: Call, service: Service) -> dict[str, Any]:
        found, more = listed(call, service, kind, SortOrder(), summary)
        return {f"{noun}s": found} | more

    def delete(call: Call, service: Service) -> dict[str, Any]:
        service.store.delete(find(call, service, kind, call.parameters[f"{noun}Name"]).id)
        return {}

    return {f"Describe{noun}": describe, f"List{noun}s": list_, f"Delete{noun}": delete}
