"""The table of S3's operations that are answered; any other is answered as one that S3 does not have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from luthier.protocol.call import Call
from luthier.service.objects import bucket_operations, list_operations, object_operations, upload_operations
from luthier.service.objects.parameters import check_refused
from luthier.service.service import Operation, Service


def _checked(operation: Operation) -> Operation:
    """The operation, after what no operation can do has been refused."""

    @wraps(operation)
    def checked(call: Call, service: Service) -> dict[str, Any]:
        check_refused(call.parameters)
        return operation(call, service)

    return checked


_ROOMS = (bucket_operations, object_operations, upload_operations, list_operations)

OPERATIONS: Mapping[str, Operation] = {
    name: operation if name in bucket_operations.NOT_OFFERED else _checked(operation)
    for room in _ROOMS
    for name, operation in room.OPERATIONS.items()
}
