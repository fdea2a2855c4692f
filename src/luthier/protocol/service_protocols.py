"""How each service words what all of them refuse alike: its form of an answer, its codes, the largest body it takes.

The wire raises SageMaker's words for these refusals; a service that says them otherwise has them in its table here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from luthier.protocol.errors import WireError

KIB, MIB = 1024, 1024 * 1024

WireProtocol = Literal["json", "query", "rest-json", "rest-xml"]


@dataclass(frozen=True, slots=True)
class ServiceProtocol:
    """`limit` is in bytes, and of a body that is not streamed; `codes` gives a common code's own name and status."""

    form: WireProtocol
    limit: int
    codes: Mapping[str, tuple[str, int]] = field(default_factory=dict)


_JSON_CODES = {
    "SignatureDoesNotMatch": ("InvalidSignatureException", 403),
    "InvalidClientTokenId": ("UnrecognizedClientException", 403),
    "RequestTimeTooSkewed": ("InvalidSignatureException", 403),
    "MissingAuthenticationToken": ("MissingAuthenticationTokenException", 403),
    "IncompleteSignature": ("IncompleteSignatureException", 400),
    "AccessDenied": ("AccessDeniedException", 403),
    "RequestTimeout": ("RequestTimeoutException", 408),
}
_QUERY_CODES = {
    "ValidationException": ("ValidationError", 400),
    "SerializationException": ("MalformedInput", 400),
    "UnknownOperationException": ("InvalidAction", 400),
    "RequestEntityTooLargeException": ("RequestEntityTooLarge", 413),
    "RequestTimeTooSkewed": ("SignatureDoesNotMatch", 403),
    "SignatureDoesNotMatch": ("SignatureDoesNotMatch", 403),
    "InvalidClientTokenId": ("InvalidClientTokenId", 403),
    "MissingAuthenticationToken": ("MissingAuthenticationToken", 403),
}
_S3_CODES = {
    "ValidationException": ("InvalidArgument", 400),
    "SerializationException": ("MalformedXML", 400),
    "UnknownOperationException": ("MethodNotAllowed", 405),
    "RequestEntityTooLargeException": ("MaxMessageLengthExceeded", 400),
    "SignatureDoesNotMatch": ("SignatureDoesNotMatch", 403),
    "InvalidClientTokenId": ("InvalidAccessKeyId", 403),
    "RequestTimeTooSkewed": ("RequestTimeTooSkewed", 403),
    "MissingAuthenticationToken": ("AccessDenied", 403),
    "IncompleteSignature": ("AuthorizationHeaderMalformed", 400),
    "AccessDenied": ("AccessDenied", 403),
    "InternalFailure": ("InternalError", 500),
}

SERVICE_PROTOCOLS: dict[str, ServiceProtocol] = {
    "sagemaker": ServiceProtocol("json", 4 * MIB, _JSON_CODES),
    "logs": ServiceProtocol(
        "json", 2 * MIB, {**_JSON_CODES, "ValidationException": ("InvalidParameterException", 400)}
    ),
    "sagemaker-runtime": ServiceProtocol(
        "rest-json",
        6 * MIB,
        {
            **_JSON_CODES,
            "ValidationException": ("ValidationError", 400),
            "UnknownOperationException": ("UnknownOperationException", 404),
        },
    ),
    "sts": ServiceProtocol("query", 256 * KIB, _QUERY_CODES),
    "iam": ServiceProtocol("query", 256 * KIB, _QUERY_CODES),
    "s3": ServiceProtocol("rest-xml", 4 * MIB, _S3_CODES),
}
OTHER = ServiceProtocol("json", 1 * MIB, _JSON_CODES)  # a service of AWS's that is not here


def protocol_of(service: str) -> ServiceProtocol:
    """The service's dialect; of one that is not here, JSON."""
    return SERVICE_PROTOCOLS.get(service, OTHER)


def service_error(service: str, error: WireError) -> WireError:
    """The error with the code and status that this service has for it."""
    code, status = protocol_of(service).codes.get(error.code, (error.code, error.status))
    return WireError(code, error.message, status, error.members)
