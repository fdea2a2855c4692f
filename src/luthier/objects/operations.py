"""The table of the implemented S3 operations; any other is an unknown operation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from luthier.objects import bucket_operations, list_operations, object_operations, upload_operations
from luthier.objects.forward_operations import forward
from luthier.objects.forwarding_store import ForwardingObjectStore
from luthier.objects.parameters import Operation, check_supported
from luthier.objects.store import ObjectStore
from luthier.protocol.call import Call


def _forwarded_if_remote(operation: Operation) -> Operation:
    """Wrap an operation: forward it if its bucket is in a remote S3, else check that its parameters are supported."""

    @wraps(operation)
    def wrapped(call: Call, objects: ObjectStore) -> dict[str, Any]:
        bucket = call.parameters.get("Bucket", "")
        if isinstance(objects, ForwardingObjectStore) and not objects.virtual_store.virtual_bucket(bucket):
            return forward(call, objects)
        if call.operation not in bucket_operations.NOT_IMPLEMENTED:  # these raise their own error
            check_supported(call.parameters)
        return operation(call, objects)

    return wrapped


_MODULES = (bucket_operations, object_operations, upload_operations, list_operations)

OPERATIONS: Mapping[str, Operation] = {
    name: _forwarded_if_remote(operation) for module in _MODULES for name, operation in module.OPERATIONS.items()
}
