"""Identify the service, operation and region of a request; its parameters are not parsed here.

The service is identified by the target header, the path of an endpoint or of a CBOR operation, the credential scope,
AWS's host name (behind a proxy), or a form with an action; any other request is S3's.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from botocore.loaders import Loader

from luthier.protocol import model, routing
from luthier.protocol.call import GLOBAL_REGION
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request
from luthier.protocol.service_protocols import WireProtocol, protocol_of

TARGETS = {"SageMaker": "sagemaker", "Logs_20140328": "logs", "GraniteServiceVersion20100801": "cloudwatch"}
VERSIONS = {"2011-06-15": "sts", "2010-05-08": "iam", "2010-08-01": "cloudwatch"}  # of the query protocol's forms
FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 2_000  # of a query or a form; parsing lists of structures from more would be slow
SIGNED_AS = {"monitoring": "cloudwatch"}  # the service of a credential scope or host name -> botocore's name
SIGNING_NAMES = {"sagemaker-runtime": "sagemaker", "cloudwatch": "monitoring"}  # botocore's name -> the scope's
CBOR = "rpc-v2-cbor"  # value of the header smithy-protocol
_CBOR_OPERATION = re.compile(r"/service/(?P<target>\w{1,64})/operation/(?P<operation>\w{1,64})")
_INVOCATION = re.compile(r"/endpoints/[^/]*/(invocations|invocations-response-stream|async-invocations)")
_SCOPE = re.compile(r"Credential=[^/,]*/\d{8}/([a-z0-9-]{1,32})/([a-z0-9-]{1,32})/aws4_request")
_AWS_HOST = re.compile(r"(?P<front>[a-z0-9.-]+)\.amazonaws\.com(\.cn)?", re.IGNORECASE)
_S3_HOST = re.compile(
    r"((?P<bucket>[a-z0-9][a-z0-9.-]*?)\.)?s3([.-](?!dualstack)(?P<old>[a-z]+(-[a-z]+)+-\d))?(\.dualstack)?"
    r"(\.(?P<region>[a-z]+(-[a-z]+)+-\d))?\.amazonaws\.com(\.cn)?",
    re.IGNORECASE,
)
_LOCAL_BUCKET = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9.-]*)\.localhost", re.IGNORECASE)
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_HOISTED = re.compile(r"x-amz-(?!content-sha256|security-token)[a-z0-9_.-]+")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class Route:
    """The operation a request is for, by botocore's names; `labels` are the parameters in the path."""

    service: str
    operation: str
    region: str = GLOBAL_REGION
    labels: dict[str, str] = field(default_factory=dict)


def service_of(request: Request) -> str:
    """The service's name, also of services that are not offered here. Does not read the body."""
    prefix, dot, _ = request.headers.get("x-amz-target", "").partition(".")
    if dot:
        return TARGETS.get(prefix, prefix)
    signed = _scope(request)
    if _INVOCATION.fullmatch(request.path) and (not signed or signed[1] != "s3"):
        return "sagemaker-runtime"
    if named := _cbor_operation(request):
        return TARGETS.get(named["target"], named["target"])
    if signed:
        return SIGNED_AS.get(signed[1], signed[1])
    host = _host(request)
    if virtual_bucket(request) or _S3_HOST.fullmatch(host):
        return "s3"
    if match := _AWS_HOST.fullmatch(host):
        parts = [part for part in match["front"].lower().split(".") if not _REGION.fullmatch(part)]
        if "runtime" in parts and "sagemaker" in parts:
            return "sagemaker-runtime"
        return SIGNED_AS.get(parts[-1], parts[-1]) if parts else "s3"
    if request.path == "/" and request.method == "POST" and _is_form(request):
        return "sts"
    for version in parse_qsl(request.query[:2048]):
        if version[0] == "Version" and version[1] in VERSIONS:
            return VERSIONS[version[1]]
    return "s3"


def region_of(request: Request) -> str:
    """The region of the credential scope, else of AWS's host name, else GLOBAL_REGION."""
    if signed := _scope(request):
        return signed[0]
    host = _host(request).lower()
    if match := _S3_HOST.fullmatch(host):
        return match["region"] or match["old"] or GLOBAL_REGION
    named = [part for part in host.split(".") if _REGION.fullmatch(part)]
    return named[-1] if named and _AWS_HOST.fullmatch(host) else GLOBAL_REGION


def virtual_bucket(request: Request) -> str:
    """The bucket in the host name (bucket.s3.us-west-2.amazonaws.com, bucket.localhost); empty for none."""
    host = _host(request)
    match = _S3_HOST.fullmatch(host) or _LOCAL_BUCKET.fullmatch(host)
    return (match["bucket"] or "") if match else ""


def wire_protocol_of(request: Request, service: str) -> WireProtocol:
    """The protocol of a request: the service's, or for CloudWatch the one that the client chose."""
    if service == "cloudwatch":
        return "cbor" if _cbor_operation(request) else "json" if "x-amz-target" in request.headers else "query"
    return protocol_of(service).wire_protocol


def find(request: Request, service: str) -> Route:
    """The operation of a request; WireError UnknownOperationException if the service has no such operation.

    The body of a form is read for its action, and can be read again.
    """
    if service not in model.SERVICES:
        raise _unknown(f"{_full_name(service)} is not part of Luthier")
    wire_protocol = wire_protocol_of(request, service)
    if wire_protocol == "cbor" and (named := _cbor_operation(request)):
        return Route(service, _existing(service, named["operation"]), region_of(request))
    if wire_protocol == "json":
        prefix, _, name = request.headers.get("x-amz-target", "").partition(".")
        if TARGETS.get(prefix) != service:
            raise _unknown("the request names no operation: its X-Amz-Target header is missing")
        return Route(service, _existing(service, name), region_of(request))
    if wire_protocol == "query":
        fields = form_fields(request, service)
        # An unsigned request names its service only here.
        service = service if _scope(request) else VERSIONS.get(fields.get("Version", ""), service)
        return Route(service, _existing(service, fields.get("Action", "")), region_of(request))
    return _find_by_path(request, service)


def check_target(request: Request) -> None:
    """WireError InvalidURI for a path or query that is not percent-encoded UTF-8."""
    if not request.path.startswith("/"):
        raise WireError("InvalidURI", "Couldn't parse the specified URI: it has no path.")
    for what, text in (("path", request.path), ("query", request.query)):
        if _BROKEN_ESCAPE.search(text) or _NOT_PRINTABLE.search(text):
            raise WireError("InvalidURI", f"Couldn't parse the specified URI: its {what} is not percent-encoded.")
        try:
            decoded = unquote(text, errors="strict")
        except UnicodeDecodeError:
            raise WireError("InvalidURI", f"Couldn't parse the specified URI: its {what} is not UTF-8.") from None
        if "\0" in decoded:
            raise WireError("InvalidURI", f"Couldn't parse the specified URI: its {what} holds a NUL.")


def query_fields(text: str) -> dict[str, str]:
    """The fields of a query or a form, the first of each name; values may be empty. WireError MalformedQueryString."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise WireError("MalformedQueryString", "The query string or form is not percent-encoded UTF-8.") from None
    except ValueError:
        raise WireError("MalformedQueryString", f"The query string or form has over {MAX_FIELDS:,} fields.") from None
    if any("\0" in name or "\0" in value for name, value in pairs):
        raise WireError("MalformedQueryString", "The query string or form holds a NUL.")
    return dict(reversed(pairs))


def form_fields(request: Request, service: str) -> dict[str, str]:
    """The fields of a query-protocol request, of its query before its form; its body can be read again."""
    body = request.body(protocol_of(service).body_limit)
    request.chunks = iter((body,))
    if body and not _is_form(request):
        raise WireError("SerializationException", f"The body is not a form: expected the content type {FORM}.")
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError:
        raise WireError("SerializationException", "The form is not percent-encoded UTF-8.") from None
    fields = query_fields(request.query)
    return query_fields(text) | fields


def headers_of(request: Request) -> dict[str, str]:
    """The request's headers, with S3's headers that a presigned URL has in its query."""
    headers = dict(request.headers)
    if "Signature=" in request.query:
        for name, value in parse_qsl(request.query[:8192], keep_blank_values=True):
            if _HOISTED.fullmatch(name) and name not in headers:
                headers[name] = re.sub(r"[\r\n]+", " ", value)
    return headers


def _find_by_path(request: Request, service: str) -> Route:
    bucket = virtual_bucket(request) if service == "s3" else ""
    path = f"/{bucket}{request.path}" if bucket else request.path
    found = routing.match(service, request.method, path, query_fields(request.query), headers_of(request))
    if found is None:
        raise _unknown("The specified method is not allowed against this resource.")
    operation, labels = found
    return Route(service, operation, region_of(request), labels)


def _cbor_operation(request: Request) -> re.Match[str] | None:
    """The target and operation in the path of a CBOR request; None for another request."""
    is_cbor = request.headers.get("smithy-protocol", "").strip().lower() == CBOR
    return _CBOR_OPERATION.fullmatch(request.path) if is_cbor else None


@functools.lru_cache(maxsize=64)  # clients invent names
def _full_name(service: str) -> str:
    """A service as its users call it, by botocore's data: "Amazon EC2", else "the service 'x'"."""
    loader = Loader(include_default_extras=False)
    if service not in loader.list_available_services("service-2"):
        return f"the service {service!r}"
    return str(loader.load_service_model(service, "service-2")["metadata"]["serviceFullName"])


def _existing(service: str, name: str) -> str:
    if not model.has(service, name):
        raise _unknown(f"Could not find operation {name[:128]!r} of {service}." if name else "No operation is named.")
    return name


def _unknown(message: str) -> WireError:
    return WireError("UnknownOperationException", message)


def _scope(request: Request) -> tuple[str, str] | None:
    """The region and service of the credential scope in the header or the query; not verified."""
    found = _SCOPE.search(request.headers.get("authorization", ""))
    if not found and "Credential=" in request.query:
        found = _SCOPE.search(unquote(request.query[:8192]))
    return (found[1], found[2]) if found else None


def _host(request: Request) -> str:
    return re.sub(r":\d*$", "", request.headers.get("host", ""))


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == FORM
