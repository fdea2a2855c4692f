"""The audit log: one JSON line for each request of a service with access keys. Rotated by size, so it is bounded.

time, request_id, key (the access key's id), caller, operation (service:Name), resource, status, error. It holds no
header, query string or body.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
from pathlib import Path

from luthier.errors import LuthierError, UserError
from luthier.protocol.gateway import RequestContext
from luthier.service import policy

FILE_BYTES, FILES = 20_000_000, 10


class AuditLog:
    """Appends to `file`, which only its owner may read."""

    def __init__(self, file: Path, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handler = logging.handlers.RotatingFileHandler(
                file, maxBytes=file_bytes, backupCount=files, encoding="utf-8", delay=True
            )
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; expected a file that this user may write") from None
        self._handler.setFormatter(logging.Formatter("%(message)s"))

    def record(self, context: RequestContext, status: int) -> None:
        """Write the line of a request that was answered with `status`."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": context.request_id,
            "key": context.principal.key if context.caller else "",
            "caller": context.caller,
            "operation": f"{context.service}:{context.route.operation or '-'}",
            "resource": _resource(context),
            "status": status,
            "error": _error_code(context.failure),
        }
        text = json.dumps(line, ensure_ascii=True)
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, "%s", (text,), None))

    def close(self) -> None:
        self._handler.close()


def _resource(context: RequestContext) -> str:
    if context.call is None:
        return ""
    try:
        return policy.audited_resource(context.call)
    except LuthierError:  # a CopySource that cannot be parsed; the request failed for it
        return ""


def _error_code(failure: Exception | None) -> str:
    if failure is None:
        return ""
    return str(getattr(failure, "code", None) or getattr(failure, "wire_code", "InternalFailure"))
