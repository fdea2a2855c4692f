"""What differs between the services: the wire protocol, the codes of errors common to all, the largest body.

Common errors are raised with SageMaker's codes; the tables here translate them for the other services.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from luthier.protocol.errors import WireError

KIB, MIB = 1024, 1024 * 1024

WireProtocol = Literal["json", "cbor", "query", "rest-json", "rest-xml"]


@dataclass(frozen=True, slots=True)
class ServiceProtocol:
    """`body_limit` in bytes, of a body that is not streamed; `codes`: common code -> own code and status.

    A client of CloudWatch chooses between three protocols (dispatch.wire_protocol_of); here is the one of its errors
    before that is known.
    """

    wire_protocol: WireProtocol
    body_limit: int
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
    "cloudwatch": ServiceProtocol(
        "json", 1 * MIB, {**_JSON_CODES, "ValidationException": ("InvalidParameterValue", 400)}
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
OTHER = ServiceProtocol("json", 1 * MIB, _JSON_CODES)  # any other service of AWS


def protocol_of(service: str) -> ServiceProtocol:
    """The service's protocol; JSON for a service that is not offered here."""
    return SERVICE_PROTOCOLS.get(service, OTHER)


def service_error(service: str, error: WireError) -> WireError:
    """The error with the service's own code and status."""
    code, status = protocol_of(service).codes.get(error.code, (error.code, error.status))
    return WireError(code, error.message, status, error.members)
