"""The error response to a request: status, error type and one line of text."""

from __future__ import annotations

from luthier.errors import LuthierError


class InvocationError(LuthierError):
    """A request that gets an error response. `error_type`:

    validation   the request is invalid (400, 404, 405, 406, 413, 415)
    loading      the model is still loading (503)
    overloaded   the queue is full (503)
    generation   the model or this program failed (500)
    """

    def __init__(self, message: str, status: int = 400, error_type: str = "validation") -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type

    def body(self) -> dict[str, str]:
        """Return the JSON body of the response."""
        return {"error": " ".join(str(self).split()), "error_type": self.error_type}
