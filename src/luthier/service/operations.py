"""Every operation of the API and of S3, and the dispatch of a call to its implementation."""

from __future__ import annotations

from typing import Any

from luthier.api import OPERATIONS as API_OPERATIONS
from luthier.api.service import Service
from luthier.objects.operations import OPERATIONS as S3_OPERATIONS
from luthier.objects.store import ObjectStore
from luthier.protocol.call import Call

KNOWN = {**API_OPERATIONS, "s3": S3_OPERATIONS}
"""Operations by name, by service (botocore's name)."""


def operate(call: Call, service: Service, objects: ObjectStore) -> dict[str, Any]:
    """The output of the operation that `call` names, as botocore's model shapes it."""
    if call.service == "s3":
        return S3_OPERATIONS[call.operation](call, objects)
    return API_OPERATIONS[call.service][call.operation](call, service)
