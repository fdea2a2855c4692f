"""The table of S3's operations that are answered; any other is answered as one that S3 does not have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from luthier.objects import bucket_operations, list_operations, object_operations, upload_operations
from luthier.objects.forward_operations import forward
from luthier.objects.forwarding_store import ForwardingObjectStore
from luthier.objects.parameters import Operation, check_refused
from luthier.objects.store import ObjectStore
from luthier.protocol.call import Call


def _placed(operation: Operation) -> Operation:
    """The operation where the bucket lies: here, or in an S3 elsewhere, which knows itself what it can do."""

    @wraps(operation)
    def placed(call: Call, objects: ObjectStore) -> dict[str, Any]:
        bucket = call.parameters.get("Bucket", "")
        if isinstance(objects, ForwardingObjectStore) and not objects.made.virtual(bucket):
            return forward(call, objects)
        if call.operation not in bucket_operations.NOT_OFFERED:  # of those, the operation says so itself
            check_refused(call.parameters)
        return operation(call, objects)

    return placed


_ROOMS = (bucket_operations, object_operations, upload_operations, list_operations)

OPERATIONS: Mapping[str, Operation] = {
    name: _placed(operation) for room in _ROOMS for name, operation in room.OPERATIONS.items()
}
