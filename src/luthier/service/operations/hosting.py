"""What models, endpoint configs and endpoints have in common: how they are found and made, and what AWS then says.

Clients match on the texts: `Could not find` and `Cannot create already existing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.protocol.call import Call
from luthier.protocol.errors import WireError
from luthier.service.operations.tags import given_tags
from luthier.service.service import Service
from luthier.service.store import Resource, TakenError

MODEL, CONFIG, ENDPOINT = "model", "endpoint-config", "endpoint"
WORDS = {MODEL: "model", CONFIG: "endpoint configuration", ENDPOINT: "endpoint"}


def find(call: Call, service: Service, kind: str, name: str) -> Resource:
    """The caller's resource; ValidationException, as AWS words it, where there is none of that name."""
    found = service.store.find(kind, (call.account, call.region), name)
    if found is None:
        raise WireError("ValidationException", f'Could not find {WORDS[kind]} "{call.arn(kind, name)}".')
    return found


def make(call: Call, service: Service, kind: str, name: str, facts: Mapping[str, Any] | None = None) -> Resource:
    """Store the call's request as a new resource, with its tags; ValidationException when the name is taken."""
    request = {member: value for member, value in call.parameters.items() if member != "Tags"}
    owner, labels = (call.account, call.region), given_tags(call)
    try:
        return service.store.create(kind, owner, name, request, facts=facts, labels=labels)
    except TakenError:
        raise WireError(
            "ValidationException", f'Cannot create already existing {WORDS[kind]} "{call.arn(kind, name)}".'
        ) from None
