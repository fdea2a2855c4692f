"""Errors as AWS's services return them: a code that clients match on, a message, an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.errors import LuthierError


class WireError(LuthierError):
    """An error response with a code and an HTTP status.

    `code` is common to all services; service_protocols.py translates it. `members` are further fields of the error's
    shape (S3's Key, ModelError's OriginalStatusCode).
    """

    def __init__(
        self, code: str, message: str, status: int = 400, members: Mapping[str, str | int] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.members = dict(members or {})


def wire_error(error: LuthierError) -> WireError:
    """Any of Luthier's errors as an error response: 400 if the caller can fix it, else 500."""
    if isinstance(error, WireError):
        return error
    return WireError(error.wire_code, str(error), 500 if error.wire_code == "InternalFailure" else 400)
