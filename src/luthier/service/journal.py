"""The server's log: one JSON object per line, to stderr or to a file that is rotated by size.

Each request has one line: time, request id, service, operation, status, milliseconds, caller. Bodies, headers and
query strings are never logged, so the log holds no secrets and no user data.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
import time
from pathlib import Path
from typing import Any

from luthier.errors import UserError

FILE_BYTES, FILES = 20_000_000, 5
# Extra fields of the log record of a request.
REQUEST = ("request_id", "service", "operation", "status", "caller")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; the record of a request has fields instead of a message."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        if hasattr(record, "operation"):
            line |= {name: getattr(record, name) for name in REQUEST}
            line["ms"] = round(1000 * getattr(record, "seconds", 0.0), 1)
        else:
            line |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(file: Path | None) -> None:
    """Log to `file`, or to stderr if it is None; UserError when the file cannot be written."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(
                file, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8"
            )
        except OSError as error:
            raise UserError(f"--log {file}: {error.strerror}; expected a file that this user may write, or -") from None
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for previous in root.handlers[:]:
        root.removeHandler(previous)
        previous.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # These log every request to an external S3.
    for name in ("botocore", "boto3", "urllib3", "s3transfer", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
