"""Forward S3 requests to a remote S3, except those for the service's virtual buckets."""

from __future__ import annotations

import threading
from typing import Any

from botocore import handlers
from botocore.config import Config
from botocore.session import get_session

from luthier.objects.remote_store import RemoteObjectStore
from luthier.objects.store import EmbeddedObjectStore

CONNECTIONS = 64  # the number of requests handled at once


class ForwardingObjectStore(RemoteObjectStore):
    """The S3 at `endpoint`, and beside it the virtual buckets of `virtual_store`.

    `client` uses the credentials of the server's environment. It does not retry, since the caller's own client does.
    """

    def __init__(self, endpoint: str, virtual_store: EmbeddedObjectStore) -> None:
        super().__init__(endpoint)
        self.virtual_store = virtual_store
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def client(self) -> Any:
        """One client for all threads, created on first use."""
        with self._lock:
            if self._client is None:
                self._client = get_session().create_client("s3", endpoint_url=self.endpoint, config=Config(
                    retries={"total_max_attempts": 1}, max_pool_connections=CONNECTIONS, parameter_validation=False,
                    request_checksum_calculation="when_required", response_checksum_validation="when_required",
                ))  # fmt: skip
                # Stores that ignore Expect: 100-continue would delay each PUT by a second.
                self._client.meta.events.unregister("before-call.s3", handlers.add_expect_header)
            return self._client

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
        self.virtual_store.close()
