"""Requests into an operation's input and results into answers, by the service's model; errors in the service's form.

The only module that knows moto's parsers, and what they lack: strict types and streams.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from xml.sax.saxutils import escape

from moto.core.eventstream import EventStreamEncoder
from moto.core.model import OperationModel, Shape
from moto.core.parse import UNDEFINED, QueryParser, RequestParserError, RestJSONParser, RestXMLParser

from luthier.errors import LuthierError
from luthier.protocol import jsonbody, serializer, xmlbody
from luthier.protocol.dispatch import form_fields, headers_of, query_fields
from luthier.protocol.errors import WireError, wire_error
from luthier.protocol.message import Request, Response
from luthier.protocol.service_protocols import WireProtocol, protocol_of, service_error

EVENT_STREAM = "application/vnd.amazon.eventstream"
JSON_TYPE = "application/x-amz-json-1.1"
ERROR_TYPES: dict[WireProtocol, str] = {
    "json": JSON_TYPE,
    "rest-json": "application/json",
    "query": "text/xml",
    "rest-xml": "application/xml",
}
PROLOG = '<?xml version="1.0" encoding="UTF-8"?>\n'
ISO, S3_ISO = "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.000Z"
LONGEST_HEADER = 1024  # of an event; the format allows 32 KiB
HOST_ID = "luthier"
BODILESS = (204, 304)
_NOT_IN_HEADER = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
# What moto's parsers raise on values of another type; they check none.
_UNPARSABLE = (RequestParserError, ValueError, TypeError, LookupError, NameError, AttributeError, ArithmeticError)
_logger = logging.getLogger(__name__)


def parse(operation: OperationModel, request: Request, labels: Mapping[str, str]) -> dict[str, Any]:
    """The operation's input; a body that its model streams is left in the request, and is its iterator of bytes.

    Raises WireError SerializationException for what cannot be read, ValidationException for a header, label or query
    field of another type than the model's.
    """
    service = str(operation.service_model.service_name)
    form = protocol_of(service).form
    if operation.input_shape is None:
        return {}
    if form == "json":
        _check_json_type(request)
        return dict(jsonbody.parse(operation.input_shape, jsonbody.read(request.body(protocol_of(service).limit))))
    payload = str(operation.input_shape.serialization.get("payload", ""))
    streamed = bool(payload and operation.input_shape.members[payload].serialization.get("streaming"))
    values = form_fields(request, service) if form == "query" else query_fields(request.query)
    given: Any = {
        "method": request.method,
        "headers": headers_of(request),
        "url_path": request.path,
        "url_params": dict(labels),
        "values": values,
        "body": request.chunks if streamed else request.body(protocol_of(service).limit),
    }
    try:
        parsed = dict(_PARSERS[form](operation, _moment).parse(given))
    except _UNPARSABLE as error:
        _logger.debug("%s could not be parsed", operation.name, exc_info=True)
        raise WireError("ValidationException", f"A parameter of {operation.name} has the wrong type: {error}") from None
    if payload and operation.input_shape.members[payload].type_name == "blob":
        parsed.setdefault(payload, given["body"])  # an empty body is one, too
    return {name: value for name, value in parsed.items() if value is not None}


def serialise(operation: OperationModel, result: Mapping[str, Any] | None, request_id: str) -> Response:
    """The answer that holds the result, whose members are those of the output shape; others are left out.

    A streamed member may be bytes or an iterator of them; the member of an event stream is an iterator of events,
    {name: members}, each encoded when it comes.
    """
    service = str(operation.service_model.service_name)
    form, members, output = protocol_of(service).form, dict(result or {}), operation.output_shape
    found = {**_identity(form, request_id)}
    body: bytes | Iterator[bytes] = b""
    if form == "json":
        body, found["Content-Type"] = _json(output, members), JSON_TYPE
    elif form == "query":
        body, found["Content-Type"] = _query_answer(operation, members, request_id), "text/xml"
    elif output is not None:
        body, kind = _rest_body(operation, output, members, form)
        found |= {"Content-Type": kind} if kind else {}
        found |= serializer.headers(output, members)
        if operation.has_event_stream_output:
            found["Content-Type"] = EVENT_STREAM
    status = 206 if service == "s3" and members.get("ContentRange") else int(operation.http.get("responseCode", 200))
    return Response(status, _checked(found), b"" if status in BODILESS else body)


def serialise_error(service: str, error: LuthierError, request_id: str) -> Response:
    """The error as the service says it: its own code for what all services refuse, its form, its headers."""
    said = service_error(service, wire_error(error))
    form = protocol_of(service).form
    headers = {"Content-Type": ERROR_TYPES[form], **_identity(form, request_id)}
    if form in ("json", "rest-json"):
        headers["X-Amzn-Errortype"] = said.code
        fields = {"__type": said.code, "Message": said.message, **said.members}
        body = json.dumps(fields).encode()
    else:
        body = _xml_error(form, said, request_id)
    return Response(said.status, _checked(headers), b"" if said.status in BODILESS else body)


def _check_json_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in ("application/x-amz-json-1.1", "application/x-amz-json-1.0", "application/json"):
        raise WireError("SerializationException", f"The content type {kind[:128]!r} is not {JSON_TYPE!r}.")


# Requests ------------------------------------------------------------------------------------------------------------


def _moment(text: str) -> datetime:
    """A time in a header, a query or XML: HTTP's form, ISO 8601 or epoch seconds."""
    try:
        if text.replace(".", "", 1).isdecimal():
            return datetime.fromtimestamp(float(text), UTC)
        return serializer.as_moment(text if text[:4].isdecimal() else parsedate_to_datetime(text))
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text[:64]!r} is not a timestamp") from None


def _whole_number(shape: Shape, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text[:64]!r} is not an integer")
    number, bits = int(text), jsonbody.BITS[shape.type_name]
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise ValueError(f"{text} does not fit into {bits} bits")
    return number


class _Xml(RestXMLParser):
    def _parse_xml_string_to_dom(self, body: bytes) -> Any:
        return xmlbody.read(body)

    def _parse_integer(self, shape: Shape, given: Any) -> int:
        return _whole_number(shape, given if isinstance(given, str) else (given.text or ""))

    _parse_long = _parse_integer


class _Query(QueryParser):
    def _parse_integer(self, shape: Shape, given: Any, prefix: str = "") -> Any:
        value = given.get(prefix, UNDEFINED)
        return _whole_number(shape, value) if isinstance(value, str) else value

    _parse_long = _parse_integer


class _RestJson(RestJSONParser):
    def _parse_body_as_json(self, body: bytes) -> Any:
        return jsonbody.read(body)


_PARSERS = {"query": _Query, "rest-json": _RestJson, "rest-xml": _Xml}


# Answers -------------------------------------------------------------------------------------------------------------


def _json(shape: Shape | None, members: Mapping[str, Any]) -> bytes:
    return json.dumps(serializer.json_value(shape, members)).encode() if shape is not None else b""


def _query_answer(operation: OperationModel, members: Mapping[str, Any], request_id: str) -> bytes:
    output, inner = operation.output_shape, ""
    if output is not None:
        wrapper = str(output.serialization.get("resultWrapper", f"{output.name}Result"))
        inner = serializer.xml_element(wrapper, output, members, ISO)
    space = operation.service_model.metadata.get("xmlNamespace", "")
    root = f"{operation.name}Response"
    ids = f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
    return f'<{root} xmlns="{space}">{inner}{ids}</{root}>'.encode()


def _rest_body(
    operation: OperationModel, output: Shape, members: Mapping[str, Any], form: WireProtocol
) -> tuple[bytes | Iterator[bytes], str]:
    """The body, which is a member alone where the model says so, and its type unless a header says it."""
    name = output.serialization.get("payload")
    if operation.has_event_stream_output:
        return _event_bytes(output, members.get(output.event_stream_name, ())), EVENT_STREAM
    if name and output.members[name].type_name in ("blob", "string"):
        return _raw(members.get(name)), ""
    shape = output.members[name] if name else output
    value = members.get(name) if name else members
    if value is None or not (name or any("location" not in member.serialization for member in shape.members.values())):
        return (b"{}", "application/json") if form == "rest-json" else (b"", "")
    if form == "rest-json":
        return _json(shape, value), "application/json"
    return _s3_document(operation, output, shape, value), "application/xml"


def _s3_document(operation: OperationModel, output: Shape, shape: Shape, value: Any) -> bytes:
    """The document of an answer of S3's, in its namespace."""
    how, space = output.serialization, str(operation.service_model.metadata.get("xmlNamespace", ""))
    root = str(how.get("resultWrapper") or how.get("payload") or f"{operation.name}Result")
    if operation.name == "GetBucketLocation":
        # The one answer that is no structure: the root holds the member's text.
        text = f'<{root} xmlns="{space}">{serializer.xml_text(value.get("LocationConstraint") or "")}</{root}>'
    else:
        text = serializer.xml_element(root, shape, value, S3_ISO, space)
    return f"{PROLOG}{text}".encode()


def _raw(body: Any) -> bytes | Iterator[bytes]:
    if body is None:
        return b""
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    return body.encode() if isinstance(body, str) else iter(body)


def _identity(form: WireProtocol, request_id: str) -> dict[str, str]:
    if form == "rest-xml":
        return {"x-amz-request-id": request_id, "x-amz-id-2": HOST_ID}
    return {"x-amzn-RequestId": request_id}


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, none of which ends its line early."""
    for name, value in headers.items():
        if _NOT_IN_HEADER.search(name) or _NOT_IN_HEADER.search(value):
            raise WireError("ValidationException", f"The header {name!r} of the answer would hold a control character.")
    return dict(headers)


def _xml_error(form: WireProtocol, error: WireError, request_id: str) -> bytes:
    def element(name: str, text: str | int) -> str:
        return f"<{name}>{serializer.NOT_IN_XML.sub('�', escape(str(text)))}</{name}>"

    fields = element("Code", error.code) + element("Message", error.message)
    fields += "".join(element(name, text) for name, text in error.members.items())
    if form == "query":
        blamed = element("Type", "Sender" if error.status < 500 else "Receiver")
        inner = f"<ErrorResponse><Error>{blamed}{fields}</Error>{element('RequestId', request_id)}</ErrorResponse>"
    else:
        ids = element("RequestId", request_id) + element("HostId", HOST_ID)
        inner = f"<Error>{fields}{ids}</Error>"
    return f"{PROLOG}{inner}".encode()


def _event_bytes(output: Shape, events: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Each event as a message when it comes; an error in the midst is the last message."""
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
        _logger.error("a stream of events failed", exc_info=error)
        error = WireError("InternalStreamFailure", "An internal failure ended the stream.", 500)
    said = wire_error(error)
    if said.code in shapes:
        kind = {":exception-type": said.code, ":content-type": "application/json", ":message-type": "exception"}
        return _message(kind, json.dumps({"Message": said.message, **said.members}).encode())
    text = said.message.encode()[:LONGEST_HEADER].decode(errors="ignore")
    return _message({":error-code": said.code, ":error-message": text, ":message-type": "error"}, b"")


def _message(fields: Mapping[str, str], payload: bytes) -> bytes:
    return bytes(EventStreamEncoder().encode_message(fields, payload))
