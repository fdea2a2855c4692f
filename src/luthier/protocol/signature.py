"""Whether a request was signed by the holder of a key: Signature Version 4 in headers and URLs, Version 2 in S3's URLs.

Errors have the common codes that service_protocols.py translates. Knows neither who holds a key nor what they may do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from posixpath import normpath
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes

from luthier.protocol.aws_chunked import HASH, STREAMING, UNSIGNED, unframe
from luthier.protocol.dispatch import service_of, virtual_bucket
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = timedelta(minutes=15)
MAX_EXPIRY_SECONDS = 7 * 24 * 3600
EMPTY = hashlib.sha256(b"").hexdigest()
SecretOf = Callable[[str], str | None]

_CREDENTIAL = re.compile(r"([^/,\s]{1,128})/(\d{8})/([a-z0-9-]{1,32})/([a-z0-9-]{1,32})/aws4_request")
_PART = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]*)")
_HEX = re.compile(r"[0-9a-f]{64}")
# What Version 2 signs of a query; the rest of it may be changed.
_SUBRESOURCES = frozenset(
    (
        *("accelerate", "acl", "cors", "defaultObjectAcl", "location", "logging", "partNumber", "policy"),
        *("requestPayment", "torrent", "versioning", "versionId", "versions", "website", "uploads", "uploadId"),
        *("delete", "lifecycle"),
        *("tagging", "restore", "storageClass", "notification", "replication", "analytics", "metrics", "inventory"),
        *("select", "select-type", "object-lock", "response-content-type", "response-content-language"),
        *("response-expires", "response-cache-control", "response-content-disposition", "response-content-encoding"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What a request in Version 4 says of its signature; `moment` is as it was sent (20300102T030405Z)."""

    key: str
    scope: str
    service: str
    signed: tuple[str, ...]
    signature: str
    moment: str
    expires: int | None = None


def is_signed(request: Request) -> bool:
    """Whether the request carries any signature."""
    named = _query_of(request).keys() & {"X-Amz-Signature", "Signature"}
    return bool(request.headers.get("authorization") or named)


def verify(request: Request, secret_of: SecretOf, now: datetime) -> str:
    """The access key that signed the request, proven; `secret_of` gives a key's secret, None for an unknown key.

    Reads nothing of the body, but lets `request.chunks` check it, and take it out of aws-chunked framing, while it is
    read. Where the body's hash is in no header, which is never so in S3, the signature itself is checked by that: the
    signer is proven once `request.chunks` has ended without an error. Raises WireError MissingAuthenticationToken,
    IncompleteSignature, InvalidClientTokenId, SignatureDoesNotMatch, RequestTimeTooSkewed or AccessDenied (a URL that
    expired, a header that should be signed).
    """
    query = _query_of(request)
    header = request.headers.get("authorization", "")
    if header and "X-Amz-Signature" in query:
        raise WireError("InvalidArgument", "Only one auth mechanism allowed: a header or the query.")
    if not header and "Signature" in query and "AWSAccessKeyId" in query:
        return _verify_second(request, query, secret_of, now)
    if header:
        claim = _claim_of_header(request, header)
    elif "X-Amz-Signature" in query:
        claim = _claim_of_query(query)
    else:
        raise WireError("MissingAuthenticationToken", "Missing Authentication Token: the request is not signed.", 403)
    _check_time(claim, now)
    _check_signed_headers(request, claim)
    secret = _secret(secret_of, claim.key)
    key = _signing_key(secret, claim.scope)
    head = _canonical_head(request, claim)

    def compare(payload: str) -> None:
        canonical = hashlib.sha256(f"{head}\n{payload}".encode("latin-1", "replace")).hexdigest()
        _compare(_sign(key, _to_sign(ALGORITHM, claim, canonical)), claim.signature)

    payload = _payload(request, claim, query)
    if payload is None:
        request.chunks = _compared(request.chunks, compare)
    else:
        compare(payload)
    unframe(request, _Chunks(key, claim))
    return claim.key


class _Chunks:
    """The signatures of an aws-chunked body, from the request's own on."""

    def __init__(self, key: bytes, claim: _Claim) -> None:
        self.key, self.claim, self.previous = key, claim, claim.signature

    def of_chunk(self, digest: str) -> str:
        text = _to_sign(f"{ALGORITHM}-PAYLOAD", self.claim, f"{self.previous}\n{EMPTY}\n{digest}")
        self.previous = _sign(self.key, text)
        return self.previous

    def of_trailer(self, digest: str) -> str:
        return _sign(self.key, _to_sign(f"{ALGORITHM}-TRAILER", self.claim, f"{self.previous}\n{digest}"))


# What is claimed ---------------------------------------------------------------------------------------------------


def _claim_of_header(request: Request, header: str) -> _Claim:
    scheme, _, rest = header.partition(" ")
    if scheme != ALGORITHM:
        raise WireError("IncompleteSignature", f"The authorization mechanism is not supported; use {ALGORITHM}.")
    parts = dict(_PART.findall(rest))
    missing = [name for name in ("Credential", "SignedHeaders", "Signature") if not parts.get(name)]
    if missing:
        raise WireError("IncompleteSignature", f"Authorization header requires {', '.join(missing)}.")
    moment = request.headers.get("x-amz-date") or _basic(request.headers.get("date", ""))
    return _claim(parts["Credential"], parts["SignedHeaders"], parts["Signature"], moment)


def _claim_of_query(query: Mapping[str, str]) -> _Claim:
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        raise WireError("IncompleteSignature", f"X-Amz-Algorithm only supports {ALGORITHM}.")
    expires = query.get("X-Amz-Expires", "")
    if not re.fullmatch(r"[0-9]{1,6}", expires) or not 1 <= int(expires) <= MAX_EXPIRY_SECONDS:
        raise WireError("IncompleteSignature", f"X-Amz-Expires must be between 1 and {MAX_EXPIRY_SECONDS} seconds.")
    credential, signed, signature, moment = (
        query.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature", "Date")
    )
    return _claim(credential, signed, signature, moment, int(expires))


def _claim(credential: str, signed: str, signature: str, moment: str, expires: int | None = None) -> _Claim:
    match = _CREDENTIAL.fullmatch(credential)
    if not match:
        text = "The credential is malformed: expected KEY/DATE/REGION/SERVICE/aws4_request."
        raise WireError("IncompleteSignature", text)
    if not _HEX.fullmatch(signature):
        raise WireError("SignatureDoesNotMatch", _MISMATCH, 403)
    if not moment.startswith(match[2]):
        raise WireError("IncompleteSignature", "The date in the credential's scope is not the date of the request.")
    scope, names = credential.partition("/")[2], tuple(signed.split(";"))
    if list(names) != sorted({name.lower() for name in names}):
        raise WireError("IncompleteSignature", "SignedHeaders must be distinct names in lower case, sorted.")
    return _Claim(
        key=match[1], scope=scope, service=match[4], signed=names, signature=signature, moment=moment, expires=expires
    )


def _basic(date: str) -> str:
    """A Date header as Version 4 writes times; the text itself when it is in no form that is known."""
    for form in ("%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S -0000", "%a, %d %b %Y %H:%M:%S +0000"):
        try:
            return datetime.strptime(date, form).strftime("%Y%m%dT%H%M%SZ")
        except ValueError:
            continue
    return date


# What has to hold ----------------------------------------------------------------------------------------------------


def _check_time(claim: _Claim, now: datetime) -> None:
    try:
        made = datetime.strptime(claim.moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        text = "The request has no valid X-Amz-Date: expected YYYYMMDDTHHMMSSZ."
        raise WireError("IncompleteSignature", text) from None
    if claim.expires is None:
        if abs(now - made) > SKEW:
            text = "The difference between the request time and the current time is too large."
            raise WireError("RequestTimeTooSkewed", text, 403)
    elif now > made + timedelta(seconds=claim.expires):
        raise WireError("AccessDenied", "Request has expired", 403)
    elif made > now + SKEW:
        raise WireError("AccessDenied", "Request is not valid yet", 403)


def _check_signed_headers(request: Request, claim: _Claim) -> None:
    if "host" not in claim.signed:
        raise WireError("IncompleteSignature", "The host header must be signed.")
    sent = {name for name in request.headers if name.startswith("x-amz-") and name != HASH}
    loose = sorted(sent - set(claim.signed))
    if loose:
        text = f"There were headers present in the request which were not signed: {', '.join(loose)[:512]}"
        raise WireError("AccessDenied", text, 403)


def _secret(secret_of: SecretOf, key: str) -> str:
    secret = secret_of(key)
    if secret is None:
        raise WireError("InvalidClientTokenId", "The access key you provided does not exist in our records.", 403)
    return secret


_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your key and signing method."
)


def _compare(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogateescape")):
        raise WireError("SignatureDoesNotMatch", _MISMATCH, 403)


# Version 4 -----------------------------------------------------------------------------------------------------------


def _compared(chunks: Iterator[bytes], compare: Callable[[str], None]) -> Iterator[bytes]:
    """The body; at its end the signature is compared with the one that the body's hash leads to."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    compare(digest.hexdigest())


def _canonical_head(request: Request, claim: _Claim) -> str:
    """The request in its canonical form, without its last line, which is the hash of the body."""
    pairs = sorted(
        (_quoted(name), _quoted(value))
        for name, value in parse_qsl(request.query, keep_blank_values=True)
        if claim.expires is None or name != "X-Amz-Signature"
    )
    lines = [
        request.method,
        _canonical_path(request.path, claim.service),
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{_trimmed(request, name)}" for name in claim.signed),
        "",
        ";".join(claim.signed),
    ]
    return "\n".join(lines)


def _canonical_path(path: str, service: str) -> str:
    once = quote(unquote_to_bytes(path), safe="/-_.~")
    if service == "s3":
        return once
    # Other services sign the path as it travels, encoded a second time, and without dots and double slashes.
    normal = normpath(path) if path else "/"
    normal = re.sub("^/+", "/", normal) + ("/" if path.endswith("/") and normal != "/" else "")
    return quote(normal, safe="/-_.~")


def _trimmed(request: Request, name: str) -> str:
    if name not in request.headers:
        # A proxy may have taken a header that was signed; without it nothing can match.
        raise WireError("SignatureDoesNotMatch", f"The signed header {name[:128]!r} is not in the request.", 403)
    return " ".join(request.headers[name].split())


def _payload(request: Request, claim: _Claim, query: Mapping[str, str]) -> str | None:
    """The hash of the body that was signed; None where only the body tells it."""
    declared = request.headers.get(HASH)
    if claim.expires is not None:
        # The hash of the body is part of a URL only when the URL says it; a header that was not signed says nothing.
        said = query.get("X-Amz-Content-Sha256") or query.get("X-Amz-Content-SHA256")
        declared = declared if HASH in claim.signed else said
        if said:
            request.headers = {**request.headers, HASH: said}
    if claim.service == "s3":
        if claim.expires is not None:
            return declared or UNSIGNED
        if not declared:
            raise WireError("InvalidRequest", f"Missing required header for this request: {HASH}")
        return declared
    if declared and declared != UNSIGNED and not declared.startswith(STREAMING):
        return declared
    if service_of(request) == "s3":
        # S3's bodies are read by its operations, or not at all, so nothing may be left to prove.
        raise WireError("IncompleteSignature", f"The credential's scope is of {claim.service!r}; expected 's3'.")
    return None


def _to_sign(algorithm: str, claim: _Claim, last: str) -> str:
    return "\n".join((algorithm, claim.moment, claim.scope, last))


def _signing_key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _sign(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")


# Version 2, of S3's URLs ---------------------------------------------------------------------------------------------


def _verify_second(request: Request, query: Mapping[str, str], secret_of: SecretOf, now: datetime) -> str:
    expires = query.get("Expires", "")
    if not re.fullmatch(r"[0-9]{1,11}", expires):
        raise WireError("AccessDenied", f"Invalid date (should be seconds since epoch): {expires[:32]}", 403)
    if now.timestamp() > int(expires):
        raise WireError("AccessDenied", "Request has expired", 403)
    key = query["AWSAccessKeyId"]
    secret = _secret(secret_of, key)
    # The signer may have put headers into the URL; one that is sent counts.
    given = {name.lower(): value for name, value in query.items()} | dict(request.headers)
    amazon = sorted((name, value) for name, value in given.items() if name.startswith("x-amz-"))
    lines = [request.method, given.get("content-md5", ""), given.get("content-type", ""), expires]
    lines += [f"{name}:{value.strip()}" for name, value in amazon]
    text = "\n".join([*lines, _resource(request)])
    digest = hmac.digest(secret.encode(), text.encode("utf-8", "replace"), "sha1")
    _compare(b64encode(digest).decode(), query["Signature"])
    unframe(request)
    return key


def _resource(request: Request) -> str:
    bucket = virtual_bucket(request)
    path = f"/{bucket}{request.path}" if bucket else request.path
    parts = [part.split("=", 1) for part in request.query.split("&")]
    signed = sorted((part for part in parts if part[0] in _SUBRESOURCES), key=lambda part: part[0])
    text = "&".join("=".join([part[0], *(unquote(value) for value in part[1:])]) for part in signed)
    return f"{path}?{text}" if text else path


def _query_of(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.query, keep_blank_values=True, max_num_fields=None))
