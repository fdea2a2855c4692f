"""What a request is answered with instead of an answer: a status, one line, and whose fault it is."""

from __future__ import annotations

from luthier.errors import LuthierError


class Refusal(LuthierError):
    """A request that gets no answer. `kind` is the error_type of the reply:

    validation   the caller's fault (400, 404, 405, 406, 413, 415)
    loading      the model is still being loaded (503)
    overloaded   as many rows wait as may (503)
    generation   the model's, or this program's, fault (500)
    """

    def __init__(self, message: str, status: int = 400, kind: str = "validation") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def reply(self) -> dict[str, str]:
        """The body of the reply."""
        return {"error": " ".join(str(self).split()), "error_type": self.kind}
