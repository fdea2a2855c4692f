"""From a request to an answer, in one visible order of work; the one place where errors become answers.

The work is done in two parts: what the head of a request decides, who calls above all, and the rest, so that no byte is
received for a request that is refused by its head. Knows no operation and no key: `operate` does the work of a call,
`authenticate` says who calls.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import LuthierError
from luthier.protocol import codec, dispatch, model
from luthier.protocol.aws_chunked import unframe
from luthier.protocol.call import Call, Principal
from luthier.protocol.dispatch import Asked
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request, Response
from luthier.protocol.service_protocols import protocol_of
from luthier.protocol.validate import validate

PLAIN = (501, 503)  # not offered, not ready: the answer says it all
_logger = logging.getLogger(__name__)

Operate = Callable[[Call], Any]
Authenticate = Callable[[Request, str], Principal]
Observe = Callable[[str, str, int, float], None]


@dataclass(slots=True)
class Exchange:
    """What is known of a request so far; each step of the order adds to it.

    `failure` is what ended it before its end. `limit` is the size of the largest body, for one that is read whole
    before any work; None where the operation reads it (S3's).
    """

    request: Request
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)
    failure: Exception | None = None
    limit: int | None = None
    service: str = "s3"
    asked: Asked = field(default_factory=lambda: Asked("s3", ""))
    principal: Principal = field(default_factory=Principal)
    caller: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    response: Response = field(default_factory=Response)


class Gateway:
    """Answers requests; may be used by many threads at once.

    `known` names the operations that are implemented, by service; one that AWS has but that is not among them is
    answered as one that AWS does not have. `observe` is told of each answer: service, operation, status, seconds.
    """

    def __init__(
        self,
        operate: Operate,
        known: Mapping[str, Container[str]],
        authenticate: Authenticate,
        observe: Observe = lambda service, operation, status, seconds: None,
    ) -> None:
        self.operate, self.known, self.authenticate, self.observe = operate, known, authenticate, observe
        self.order_of_head: tuple[Callable[[Exchange], None], ...] = (
            self._address,
            self._authenticate,
            self._bound,
        )
        self.order: tuple[Callable[[Exchange], None], ...] = (
            self._read,
            self._find,
            self._unframe,
            self._parse,
            self._validate,
            self._operate,
            self._serialise,
        )

    def answer(self, request: Request) -> Response:
        """The answer to a request, an error's included; raises nothing."""
        return self.end(self.begin(request))

    def begin(self, request: Request) -> Exchange:
        """Judge a request by its head, and read nothing of its body; raises nothing."""
        exchange = Exchange(request)
        self._work(exchange, self.order_of_head)
        return exchange

    def end(self, exchange: Exchange) -> Response:
        """The answer to a request that was begun, a refusal's included; raises nothing."""
        if exchange.failure is None:
            self._work(exchange, self.order)
        response = exchange.response if exchange.failure is None else self._refusal(exchange, exchange.failure)
        self._report(exchange, response, time.monotonic() - exchange.started)
        return response

    def _work(self, exchange: Exchange, steps: tuple[Callable[[Exchange], None], ...]) -> None:
        try:
            for step in steps:
                step(exchange)
        except Exception as failure:
            exchange.failure = failure

    def _refusal(self, exchange: Exchange, failure: Exception) -> Response:
        operation = exchange.asked.operation
        if isinstance(failure, LuthierError):
            response = codec.serialise_error(exchange.service, failure, exchange.request_id)
            if response.status >= 500 and response.status not in PLAIN:
                _logger.error("%s %s failed: %s", exchange.service, operation, failure, exc_info=failure)
            return response
        _logger.error("%s %s failed: %s", exchange.service, operation, exchange.request_id, exc_info=failure)
        text = f"An internal failure: its cause is in the server's log under {exchange.request_id}."
        return codec.serialise_error(exchange.service, WireError("InternalFailure", text, 500), exchange.request_id)

    def _address(self, exchange: Exchange) -> None:
        exchange.service = dispatch.service_of(exchange.request)
        dispatch.check_target(exchange.request)

    def _authenticate(self, exchange: Exchange) -> None:
        exchange.principal = self.authenticate(exchange.request, exchange.service)

    def _bound(self, exchange: Exchange) -> None:
        """Only S3 streams; its bodies are read by who knows the operation."""
        if exchange.service != "s3":
            exchange.limit = protocol_of(exchange.service).limit
            exchange.request.refuse_announced(exchange.limit)

    def _read(self, exchange: Exchange) -> None:
        if exchange.limit is not None:
            exchange.request.chunks = iter((exchange.request.body(exchange.limit),))
        exchange.caller = exchange.principal.arn  # not before: it may be the body that proves who signed

    def _find(self, exchange: Exchange) -> None:
        exchange.asked = asked = dispatch.find(exchange.request, exchange.service)
        exchange.service = asked.service
        if asked.operation not in self.known.get(asked.service, ()):
            raise WireError("UnknownOperationException", f"The operation {asked.operation} is not part of Luthier.")

    def _unframe(self, exchange: Exchange) -> None:
        unframe(exchange.request)

    def _parse(self, exchange: Exchange) -> None:
        exchange.parameters = codec.parse(self._model(exchange), exchange.request, exchange.asked.labels)

    def _validate(self, exchange: Exchange) -> None:
        validate(self._model(exchange), exchange.parameters)

    def _operate(self, exchange: Exchange) -> None:
        asked = exchange.asked
        call = Call(
            asked.service, asked.operation, exchange.parameters, exchange.request, exchange.request_id, asked.region,
            exchange.principal,
        )  # fmt: skip
        exchange.result = self.operate(call)

    def _serialise(self, exchange: Exchange) -> None:
        exchange.response = codec.serialise(self._model(exchange), exchange.result, exchange.request_id)

    def _model(self, exchange: Exchange) -> Any:
        return model.operation(exchange.asked.service, exchange.asked.operation)

    def _report(self, exchange: Exchange, response: Response, seconds: float) -> None:
        operation = exchange.asked.operation or "-"
        # What a client makes up must not become a name in the log or the metrics.
        service = exchange.service if exchange.service in model.SERVICES else "-"
        _logger.info(
            "%s %s %d %.0f ms %s", service, operation, response.status, seconds * 1000, exchange.request_id,
            extra={"service": service, "operation": operation, "status": response.status, "seconds": seconds,
                   "request_id": exchange.request_id, "caller": exchange.caller},
        )  # fmt: skip
        try:
            self.observe(service, operation, response.status, seconds)
        except Exception:
            _logger.exception("an answer could not be observed")
