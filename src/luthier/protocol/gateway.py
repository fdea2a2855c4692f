"""From a request to a response, as a list of steps; the only place where errors become error responses.

The steps are in two parts, by head and by body, so that no byte of a body is received for a request whose head is
rejected. Knows no operation and no key: `operate` performs a call, `authenticate` returns the caller.
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
from luthier.protocol.aws_chunked import decode_body
from luthier.protocol.call import Call, Principal
from luthier.protocol.dispatch import Route
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request, Response
from luthier.protocol.service_protocols import WireProtocol, protocol_of
from luthier.protocol.validate import validate

EXPECTED_5XX = (501, 503)  # not implemented, not ready: not logged as failures
_logger = logging.getLogger(__name__)

Operate = Callable[[Call], Any]
Authenticate = Callable[[Request, str], Principal]
Observe = Callable[[str, str, int, float], None]


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """What is known of a request so far; each step adds to it.

    `failure` is the exception that ended it. `body_limit` is the maximum size in bytes of a body that is read before
    any work; None if the operation reads the body itself (S3).
    """

    request: Request
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)
    failure: Exception | None = None
    body_limit: int | None = None
    service: str = "s3"
    wire_protocol: WireProtocol = "rest-xml"
    route: Route = field(default_factory=lambda: Route("s3", ""))
    principal: Principal = field(default_factory=Principal)
    caller: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    call: Call | None = None
    result: Any = None
    response: Response = field(default_factory=Response)


Audit = Callable[[RequestContext, int], None]


class Gateway:
    """Handles requests; thread-safe.

    `operations` are the names of the implemented operations by service; any other is an unknown operation. `observe`
    is called after each response with service, operation, status and seconds; `audit` with the request and the status.
    """

    def __init__(
        self,
        operate: Operate,
        operations: Mapping[str, Container[str]],
        authenticate: Authenticate,
        observe: Observe = lambda service, operation, status, seconds: None,
        audit: Audit = lambda context, status: None,
    ) -> None:
        self.operate, self.operations, self.authenticate = operate, operations, authenticate
        self.observe, self.audit = observe, audit
        self.head_steps: tuple[Callable[[RequestContext], None], ...] = (
            self._identify_service,
            self._authenticate,
            self._limit_body,
        )
        self.body_steps: tuple[Callable[[RequestContext], None], ...] = (
            self._read_body,
            self._find_operation,
            self._decode_body,
            self._parse,
            self._validate,
            self._operate,
            self._serialise,
        )

    def respond(self, request: Request) -> Response:
        """The response to a request, including error responses; raises nothing."""
        return self.finish(self.begin(request))

    def begin(self, request: Request) -> RequestContext:
        """Run the steps that need only the head of a request; raises nothing."""
        context = RequestContext(request=request)
        self._run(context, self.head_steps)
        return context

    def finish(self, context: RequestContext) -> Response:
        """The response to a request that was begun, including error responses; raises nothing."""
        if context.failure is None:
            self._run(context, self.body_steps)
        response = context.response if context.failure is None else self._error_response(context, context.failure)
        self._log_response(context, response, time.monotonic() - context.started)
        return response

    def _run(self, context: RequestContext, steps: tuple[Callable[[RequestContext], None], ...]) -> None:
        try:
            for step in steps:
                step(context)
        except Exception as failure:
            context.failure = failure

    def _error_response(self, context: RequestContext, failure: Exception) -> Response:
        operation = context.route.operation
        if isinstance(failure, LuthierError):
            response = codec.serialise_error(context.service, failure, context.request_id, context.wire_protocol)
            if response.status >= 500 and response.status not in EXPECTED_5XX:
                _logger.error("%s %s failed: %s", context.service, operation, failure, exc_info=failure)
            return response
        _logger.error("%s %s failed: %s", context.service, operation, context.request_id, exc_info=failure)
        text = f"An internal failure: its cause is in the server's log under {context.request_id}."
        error = WireError("InternalFailure", text, 500)
        return codec.serialise_error(context.service, error, context.request_id, context.wire_protocol)

    def _identify_service(self, context: RequestContext) -> None:
        context.service = dispatch.service_of(context.request)
        context.wire_protocol = dispatch.wire_protocol_of(context.request, context.service)
        dispatch.check_target(context.request)

    def _authenticate(self, context: RequestContext) -> None:
        context.principal = self.authenticate(context.request, context.service)

    def _limit_body(self, context: RequestContext) -> None:
        """Only S3 streams bodies; the others are limited before they are received. WireError for a coding of them."""
        coding = context.request.headers.get("transfer-encoding", "chunked").strip().lower()
        if coding != "chunked":
            raise WireError(
                "NotImplemented", f"The transfer coding {coding[:64]!r} is not supported; use chunked.", 501
            )
        if context.service != "s3":
            context.body_limit = protocol_of(context.service).body_limit
            context.request.check_content_length(context.body_limit)

    def _read_body(self, context: RequestContext) -> None:
        if context.body_limit is not None:
            context.request.chunks = iter((context.request.body(context.body_limit),))
        context.caller = context.principal.arn  # only now: the signature may depend on the body

    def _find_operation(self, context: RequestContext) -> None:
        context.route = route = dispatch.find(context.request, context.service)
        context.service = route.service
        context.wire_protocol = dispatch.wire_protocol_of(context.request, route.service)
        if route.operation not in self.operations.get(route.service, ()):
            raise WireError("UnknownOperationException", f"The operation {route.operation} is not part of Luthier.")

    def _decode_body(self, context: RequestContext) -> None:
        decode_body(context.request)

    def _parse(self, context: RequestContext) -> None:
        context.parameters = codec.parse(
            self._model(context), context.request, context.route.labels, context.wire_protocol
        )

    def _validate(self, context: RequestContext) -> None:
        validate(self._model(context), context.parameters)

    def _operate(self, context: RequestContext) -> None:
        route = context.route
        context.call = Call(
            service=route.service, operation=route.operation, parameters=context.parameters, request=context.request,
            request_id=context.request_id, region=route.region, principal=context.principal,
        )  # fmt: skip
        context.result = self.operate(context.call)

    def _serialise(self, context: RequestContext) -> None:
        context.response = codec.serialise(
            self._model(context), context.result, context.request_id, context.wire_protocol
        )

    def _model(self, context: RequestContext) -> Any:
        return model.operation(context.route.service, context.route.operation)

    def _log_response(self, context: RequestContext, response: Response, seconds: float) -> None:
        operation = context.route.operation or "-"
        # Names that a client invents must not appear in the log or the metrics.
        service = context.service if context.service in model.SERVICES else "-"
        _logger.info(
            "%s %s %d %.0f ms %s", service, operation, response.status, seconds * 1000, context.request_id,
            extra={"service": service, "operation": operation, "status": response.status, "seconds": seconds,
                   "request_id": context.request_id, "caller": context.caller},
        )  # fmt: skip
        try:
            self.observe(service, operation, response.status, seconds)
            self.audit(context, response.status)
        except Exception:
            _logger.exception("the response could not be observed")
