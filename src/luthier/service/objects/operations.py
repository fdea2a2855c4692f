"""The table of S3's operations that are answered; any other is answered as one that S3 does not have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from luthier.protocol.call import Call
from luthier.service.objects import bucket_operations, list_operations, object_operations, upload_operations
from luthier.service.objects.forward_operations import forward
from luthier.service.objects.forwarding import ForwardedObjects
from luthier.service.objects.parameters import check_refused
from luthier.service.service import Operation, Service


def _placed(operation: Operation) -> Operation:
    """The operation where the bucket lies: here, or in an S3 elsewhere, which knows itself what it can do."""

    @wraps(operation)
    def placed(call: Call, service: Service) -> dict[str, Any]:
        objects, bucket = service.objects, call.parameters.get("Bucket", "")
        if isinstance(objects, ForwardedObjects) and not objects.made.virtual(bucket):
            return forward(call, objects)
        if call.operation not in bucket_operations.NOT_OFFERED:  # of those, the operation says so itself
            check_refused(call.parameters)
        return operation(call, service)

    return placed


_ROOMS = (bucket_operations, object_operations, upload_operations, list_operations)

OPERATIONS: Mapping[str, Operation] = {
    name: _placed(operation) for room in _ROOMS for name, operation in room.OPERATIONS.items()
}
