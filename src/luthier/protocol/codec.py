"""Requests into an operation's input, results and errors into responses, by the service's model."""

from __future__ import annotations

import json
import logging
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape

from botocore.model import OperationModel, Shape

from luthier.errors import LuthierError
from luthier.protocol import cbor, jsonbody, parser, serializer, xmlbody
from luthier.protocol.dispatch import CBOR, form_fields, headers_of, query_fields
from luthier.protocol.errors import WireError, wire_error
from luthier.protocol.message import Request, Response
from luthier.protocol.service_protocols import WireProtocol, protocol_of, service_error

EVENT_STREAM = "application/vnd.amazon.eventstream"
JSON_TYPE = "application/x-amz-json-1.1"
ERROR_TYPES: dict[WireProtocol, str] = {
    "json": JSON_TYPE,
    "cbor": cbor.CBOR_TYPE,
    "rest-json": "application/json",
    "query": "text/xml",
    "rest-xml": "application/xml",
}
PROLOG = '<?xml version="1.0" encoding="UTF-8"?>\n'
ISO, S3_ISO = "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.000Z"
MAX_EVENT_HEADER = 1024  # bytes; the format allows 32 KiB
HOST_ID = "luthier"
S3_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
# Root elements of S3's responses that are neither the payload's name nor {operation}Result; botocore's model has none.
S3_ROOTS = {
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketAcl": "AccessControlPolicy",
    "GetBucketCors": "CORSConfiguration",
    "GetBucketLifecycleConfiguration": "LifecycleConfiguration",
    "GetBucketLocation": "LocationConstraint",
    "GetBucketLogging": "BucketLoggingStatus",
    "GetBucketNotificationConfiguration": "NotificationConfiguration",
    "GetBucketTagging": "Tagging",
    "GetObjectAcl": "AccessControlPolicy",
    "GetObjectAttributes": "GetObjectAttributesOutput",
    "GetObjectTagging": "Tagging",
    "ListBuckets": "ListAllMyBucketsResult",
    "ListObjectVersions": "ListVersionsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
}
WITHOUT_BODY = (204, 304)
_NOT_IN_HEADER = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_logger = logging.getLogger(__name__)


def parse(
    operation: OperationModel, request: Request, labels: Mapping[str, str], wire_protocol: WireProtocol | None = None
) -> dict[str, Any]:
    """The operation's input; a body that its model streams is left in the request, and is its iterator of bytes.

    `wire_protocol` None is the service's own, here and below.

    Raises WireError SerializationException for what cannot be read, ValidationException for a header, label, field or
    XML element of another type than the model's.
    """
    service, shape = str(operation.service_model.service_name), operation.input_shape
    limit, wire_protocol = protocol_of(service).body_limit, wire_protocol or protocol_of(service).wire_protocol
    if shape is None:
        return {}
    if wire_protocol == "json":
        _check_json_type(request)
        return dict(jsonbody.parse(shape, jsonbody.read(request.body(limit))))
    if wire_protocol == "cbor":
        return dict(jsonbody.parse(shape, cbor.read(request.body(limit))))
    try:
        if wire_protocol == "query":
            return parser.parse_form(shape, form_fields(request, service)) or {}
        return _parse_rest(shape, request, labels, limit)
    except ValueError as error:
        raise WireError("ValidationException", f"A parameter of {operation.name} has the wrong type: {error}") from None


def _parse_rest(shape: Shape, request: Request, labels: Mapping[str, str], limit: int) -> dict[str, Any]:
    payload = shape.serialization.get("payload", "")
    member = shape.members.get(payload)
    is_streamed = member is not None and member.serialization.get("streaming")
    body = b"" if is_streamed else request.body(limit)
    parsed = parser.parse_bindings(shape, labels, query_fields(request.query), headers_of(request))
    if member is not None and member.type_name == "blob":
        return parsed | {payload: request.chunks if is_streamed else body}  # also an empty one
    in_body = any("location" not in inner.serialization for inner in shape.members.values())
    if not body or not in_body:  # S3 ignores the body of an operation that has none
        return parsed
    if member is not None and member.type_name == "string":
        return parsed | {payload: body.decode()}
    members = parser.parse_xml(member or shape, xmlbody.read(body))
    return parsed | ({payload: members} if member else members)


def serialise(
    operation: OperationModel,
    result: Mapping[str, Any] | None,
    request_id: str,
    wire_protocol: WireProtocol | None = None,
) -> Response:
    """The response with the result, whose members are those of the output shape; others are left out.

    A streamed member may be bytes or an iterator of bytes. The member of an event stream is an iterator of events
    {name: members}, which are encoded one by one.
    """
    service = str(operation.service_model.service_name)
    wire_protocol = wire_protocol or protocol_of(service).wire_protocol
    members, output = dict(result or {}), operation.output_shape
    headers = _id_headers(wire_protocol, request_id)
    body: bytes | Iterator[bytes] = b""
    if wire_protocol == "json":
        body, headers["Content-Type"] = _json(output, members), JSON_TYPE
    elif wire_protocol == "cbor":
        body, headers["Content-Type"] = cbor.write(output, members), cbor.CBOR_TYPE
    elif wire_protocol == "query":
        body, headers["Content-Type"] = _query_response(operation, members, request_id), "text/xml"
    elif output is not None:
        body, kind = _rest_body(operation, output, members, wire_protocol)
        headers |= {"Content-Type": kind} if kind else {}
        headers |= serializer.headers(output, members)
        if operation.has_event_stream_output:
            headers["Content-Type"] = EVENT_STREAM
    status = 206 if service == "s3" and members.get("ContentRange") else int(operation.http.get("responseCode", 200))
    return Response(status, _check_headers(headers), b"" if status in WITHOUT_BODY else body)


def serialise_error(
    service: str, error: LuthierError, request_id: str, wire_protocol: WireProtocol | None = None
) -> Response:
    """The error response, with the service's own code for common errors."""
    wire_protocol = wire_protocol or protocol_of(service).wire_protocol
    response_error = service_error(service, wire_error(error))
    headers = {"Content-Type": ERROR_TYPES[wire_protocol], **_id_headers(wire_protocol, request_id)}
    if wire_protocol in ("json", "rest-json"):
        headers["X-Amzn-Errortype"] = response_error.code
        fields = {"__type": response_error.code, "Message": response_error.message, **response_error.members}
        body = json.dumps(fields).encode()
    elif wire_protocol == "cbor":
        body = cbor.write_map({"__type": response_error.code, "message": response_error.message})
    else:
        body = _xml_error(wire_protocol, response_error, request_id)
    return Response(
        response_error.status, _check_headers(headers), b"" if response_error.status in WITHOUT_BODY else body
    )


def _check_json_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in ("application/x-amz-json-1.1", "application/x-amz-json-1.0", "application/json"):
        raise WireError("SerializationException", f"The content type {kind[:128]!r} is not {JSON_TYPE!r}.")


# Responses -----------------------------------------------------------------------------------------------------------


def _json(shape: Shape | None, members: Mapping[str, Any]) -> bytes:
    return json.dumps(serializer.json_value(shape, members)).encode() if shape is not None else b""


def _query_response(operation: OperationModel, members: Mapping[str, Any], request_id: str) -> bytes:
    output, inner = operation.output_shape, ""
    if output is not None:
        wrapper = str(output.serialization.get("resultWrapper", f"{output.name}Result"))
        inner = serializer.xml_element(wrapper, output, members, ISO)
    space = operation.service_model.metadata.get("xmlNamespace", "")
    root = f"{operation.name}Response"
    ids = f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
    return f'<{root} xmlns="{space}">{inner}{ids}</{root}>'.encode()


def _rest_body(
    operation: OperationModel, output: Shape, members: Mapping[str, Any], wire_protocol: WireProtocol
) -> tuple[bytes | Iterator[bytes], str]:
    """The body (the payload member or the members without a location) and its type, unless a header has it."""
    name = output.serialization.get("payload")
    if operation.has_event_stream_output:
        return _event_bytes(output, members.get(output.event_stream_name, ())), EVENT_STREAM
    if name and output.members[name].type_name in ("blob", "string"):
        return _raw(members.get(name)), ""
    shape = output.members[name] if name else output
    value = members.get(name) if name else members
    if value is None or not (name or any("location" not in member.serialization for member in shape.members.values())):
        return (b"{}", "application/json") if wire_protocol == "rest-json" else (b"", "")
    if wire_protocol == "rest-json":
        return _json(shape, value), "application/json"
    return _s3_document(operation, output, shape, value), "application/xml"


def _s3_document(operation: OperationModel, output: Shape, shape: Shape, value: Any) -> bytes:
    """An S3 response document, in its namespace."""
    root = S3_ROOTS.get(operation.name) or output.serialization.get("payload") or f"{operation.name}Result"
    if operation.name == "GetBucketLocation":
        # The only response that is not a structure: the root element has the member's text.
        text = f'<{root} xmlns="{S3_NAMESPACE}">{serializer.xml_text(value.get("LocationConstraint") or "")}</{root}>'
    else:
        text = serializer.xml_element(root, shape, value, S3_ISO, S3_NAMESPACE)
    return f"{PROLOG}{text}".encode()


def _raw(body: Any) -> bytes | Iterator[bytes]:
    if body is None:
        return b""
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    return body.encode() if isinstance(body, str) else iter(body)


def _id_headers(wire_protocol: WireProtocol, request_id: str) -> dict[str, str]:
    if wire_protocol == "rest-xml":
        return {"x-amz-request-id": request_id, "x-amz-id-2": HOST_ID}
    if wire_protocol == "cbor":
        return {"x-amzn-RequestId": request_id, "smithy-protocol": CBOR}
    return {"x-amzn-RequestId": request_id}


def _check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers; WireError for a line break or control character in one (response splitting)."""
    for name, value in headers.items():
        if _NOT_IN_HEADER.search(name) or _NOT_IN_HEADER.search(value):
            raise WireError("ValidationException", f"The header {name!r} of the response has a control character.")
    return dict(headers)


def _xml_error(wire_protocol: WireProtocol, error: WireError, request_id: str) -> bytes:
    def element(name: str, text: str | int) -> str:
        return f"<{name}>{serializer.NOT_IN_XML.sub('�', escape(str(text)))}</{name}>"

    fields = element("Code", error.code) + element("Message", error.message)
    fields += "".join(element(name, text) for name, text in error.members.items())
    if wire_protocol == "query":
        fault = element("Type", "Sender" if error.status < 500 else "Receiver")
        inner = f"<ErrorResponse><Error>{fault}{fields}</Error>{element('RequestId', request_id)}</ErrorResponse>"
    else:
        ids = element("RequestId", request_id) + element("HostId", HOST_ID)
        inner = f"<Error>{fields}{ids}</Error>"
    return f"{PROLOG}{inner}".encode()


def _event_bytes(output: Shape, events: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Each event as a message; an error while iterating becomes the last message."""
    shapes = output.members[output.event_stream_name].members
    try:
        for event in events:
            ((name, members),) = event.items()
            yield _event(name, shapes[name], members)
    except Exception as error:
        yield _exception_event(shapes, error)
    finally:
        close = getattr(events, "close", None)
        if close is not None:
            close()


def _event(name: str, shape: Shape, members: Mapping[str, Any]) -> bytes:
    raw = next((key for key, member in shape.members.items() if member.serialization.get("eventpayload")), None)
    payload = _json(shape, members) if raw is None else bytes(members.get(raw) or b"")
    kind = "application/json" if raw is None else "application/octet-stream"
    return _message({":event-type": name, ":content-type": kind, ":message-type": "event"}, payload)


def _exception_event(shapes: Mapping[str, Shape], error: Exception) -> bytes:
    if not isinstance(error, LuthierError):
        _logger.error("an event stream failed", exc_info=error)
        error = WireError("InternalStreamFailure", "An internal failure ended the stream.", 500)
    response_error = wire_error(error)
    if response_error.code in shapes:
        kind = {
            ":exception-type": response_error.code,
            ":content-type": "application/json",
            ":message-type": "exception",
        }
        return _message(kind, json.dumps({"Message": response_error.message, **response_error.members}).encode())
    text = response_error.message.encode()[:MAX_EVENT_HEADER].decode(errors="ignore")
    return _message({":error-code": response_error.code, ":error-message": text, ":message-type": "error"}, b"")


def _message(fields: Mapping[str, str], payload: bytes) -> bytes:
    """An event as AWS frames it: lengths and their CRC, headers of type 7 (string), payload, CRC of all before it."""
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(text.encode())) + text.encode()
        for name, text in fields.items()
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))
