"""An S3 elsewhere behind this server's port: its buckets, and beside them those that the service makes up."""

from __future__ import annotations

import threading
from typing import Any

from botocore import handlers
from botocore.config import Config
from botocore.session import get_session

from luthier.objects.remote_store import RemoteObjectStore
from luthier.objects.store import EmbeddedObjectStore

CONNECTIONS = 64  # as many as requests are worked on at once


class ForwardingObjectStore(RemoteObjectStore):
    """The objects of the S3 at `endpoint`; `made` is the store that answers for the virtual buckets, and for no other.

    `client` asks that S3 with the credentials of the server's environment; each of its calls is one request, since the
    caller's own client repeats what failed.
    """

    def __init__(self, endpoint: str, made: EmbeddedObjectStore) -> None:
        super().__init__(endpoint)
        self.made = made
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def client(self) -> Any:
        """One client for all threads, made when it is first asked for."""
        with self._lock:
            if self._client is None:
                self._client = get_session().create_client("s3", endpoint_url=self.endpoint, config=Config(
                    retries={"total_max_attempts": 1}, max_pool_connections=CONNECTIONS, parameter_validation=False,
                    request_checksum_calculation="when_required", response_checksum_validation="when_required",
                ))  # fmt: skip
                # A store that does not know Expect: 100-continue would cost a second on each PUT.
                self._client.meta.events.unregister("before-call.s3", handlers.add_expect_header)
            return self._client

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
        self.made.close()
