"""Verify a request's signature: Signature Version 4 in headers and URLs, Version 2 in S3's presigned URLs.

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

from luthier.protocol.aws_chunked import HASH, STREAMING, UNSIGNED, decode_body
from luthier.protocol.dispatch import SIGNING_NAMES, service_of, virtual_bucket
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
# The query fields that Version 2 signs.
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
class _SignatureClaim:
    """A Version 4 signature as the request claims it; `timestamp` as sent (20300102T030405Z), `expires` in seconds."""

    key: str
    scope: str
    service: str
    signed: tuple[str, ...]
    signature: str
    timestamp: str
    expires: int | None = None


def verify(request: Request, secret_of: SecretOf, now: datetime) -> str:
    """The access key that signed the request; `secret_of` returns a key's secret, None for an unknown key.

    Does not read the body, but makes `request.chunks` verify and decode it while it is read. If no header has the
    body's hash (never in S3), the signature is verified with it, too: then the signer is proven only when
    `request.chunks` has ended without an error. Raises WireError MissingAuthenticationToken, IncompleteSignature,
    InvalidClientTokenId, SignatureDoesNotMatch, RequestTimeTooSkewed or AccessDenied (an expired URL, an unsigned
    header).
    """
    query = _query_fields(request)
    header = request.headers.get("authorization", "")
    if header and "X-Amz-Signature" in query:
        raise WireError("InvalidArgument", "Only one auth mechanism allowed: a header or the query.")
    if not header and "Signature" in query and "AWSAccessKeyId" in query:
        return _verify_version_2(request, query, secret_of, now)
    if header:
        claim = _parse_header(request, header)
    elif "X-Amz-Signature" in query:
        claim = _parse_query(query)
    else:
        raise WireError("MissingAuthenticationToken", "Missing Authentication Token: the request is not signed.", 403)
    _check_time(claim, now)
    _check_scope(request, claim)
    _check_signed_headers(request, claim)
    secret = _secret(secret_of, claim.key)
    key = _signing_key(secret, claim.scope)
    head = _canonical_head(request, claim)

    def compare(payload: str) -> None:
        canonical = hashlib.sha256(f"{head}\n{payload}".encode("latin-1", "replace")).hexdigest()
        _check_signature(_sign(key, _to_sign(ALGORITHM, claim, canonical)), claim.signature)

    payload = _payload_hash(request, claim, query)
    if payload is None:
        request.chunks = _verify_at_end(request.chunks, compare)
    else:
        compare(payload)
    decode_body(request, _ChunkSignatures(key, claim))
    return claim.key


class _ChunkSignatures:
    """The signatures of an aws-chunked body; the first one covers the request's."""

    def __init__(self, key: bytes, claim: _SignatureClaim) -> None:
        self.key, self.claim, self.previous = key, claim, claim.signature

    def chunk_signature(self, digest: str) -> str:
        text = _to_sign(f"{ALGORITHM}-PAYLOAD", self.claim, f"{self.previous}\n{EMPTY}\n{digest}")
        self.previous = _sign(self.key, text)
        return self.previous

    def trailer_signature(self, digest: str) -> str:
        return _sign(self.key, _to_sign(f"{ALGORITHM}-TRAILER", self.claim, f"{self.previous}\n{digest}"))


# Parsing -----------------------------------------------------------------------------------------------------------


def _parse_header(request: Request, header: str) -> _SignatureClaim:
    scheme, _, rest = header.partition(" ")
    if scheme != ALGORITHM:
        raise WireError("IncompleteSignature", f"The authorization mechanism is not supported; use {ALGORITHM}.")
    parts = dict(_PART.findall(rest))
    missing = [name for name in ("Credential", "SignedHeaders", "Signature") if not parts.get(name)]
    if missing:
        raise WireError("IncompleteSignature", f"Authorization header requires {', '.join(missing)}.")
    timestamp = request.headers.get("x-amz-date") or _to_basic_format(request.headers.get("date", ""))
    return _parse_claim(parts["Credential"], parts["SignedHeaders"], parts["Signature"], timestamp)


def _parse_query(query: Mapping[str, str]) -> _SignatureClaim:
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        raise WireError("IncompleteSignature", f"X-Amz-Algorithm only supports {ALGORITHM}.")
    expires = query.get("X-Amz-Expires", "")
    if not re.fullmatch(r"[0-9]{1,6}", expires) or not 1 <= int(expires) <= MAX_EXPIRY_SECONDS:
        raise WireError("IncompleteSignature", f"X-Amz-Expires must be between 1 and {MAX_EXPIRY_SECONDS} seconds.")
    credential, signed, signature, timestamp = (
        query.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature", "Date")
    )
    return _parse_claim(credential, signed, signature, timestamp, int(expires))


def _parse_claim(
    credential: str, signed: str, signature: str, timestamp: str, expires: int | None = None
) -> _SignatureClaim:
    match = _CREDENTIAL.fullmatch(credential)
    if not match:
        text = "The credential is malformed: expected KEY/DATE/REGION/SERVICE/aws4_request."
        raise WireError("IncompleteSignature", text)
    if not _HEX.fullmatch(signature):
        raise WireError("SignatureDoesNotMatch", _MISMATCH, 403)
    if not timestamp.startswith(match[2]):
        raise WireError("IncompleteSignature", "The date in the credential's scope is not the date of the request.")
    scope, names = credential.partition("/")[2], tuple(signed.split(";"))
    if list(names) != sorted({name.lower() for name in names}):
        raise WireError("IncompleteSignature", "SignedHeaders must be distinct names in lower case, sorted.")
    return _SignatureClaim(
        key=match[1],
        scope=scope,
        service=match[4],
        signed=names,
        signature=signature,
        timestamp=timestamp,
        expires=expires,
    )


def _to_basic_format(date: str) -> str:
    """A Date header in the format of X-Amz-Date; unchanged if its format is unknown."""
    for form in ("%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S -0000", "%a, %d %b %Y %H:%M:%S +0000"):
        try:
            return datetime.strptime(date, form).strftime("%Y%m%dT%H%M%SZ")
        except ValueError:
            continue
    return date


# Checks --------------------------------------------------------------------------------------------------------------


def _check_time(claim: _SignatureClaim, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(claim.timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        text = "The request has no valid X-Amz-Date: expected YYYYMMDDTHHMMSSZ."
        raise WireError("IncompleteSignature", text) from None
    if claim.expires is None:
        if abs(now - signed_at) > SKEW:
            text = "The difference between the request time and the current time is too large."
            raise WireError("RequestTimeTooSkewed", text, 403)
    elif now > signed_at + timedelta(seconds=claim.expires):
        raise WireError("AccessDenied", "Request has expired", 403)
    elif signed_at > now + SKEW:
        raise WireError("AccessDenied", "Request is not valid yet", 403)


def _check_scope(request: Request, claim: _SignatureClaim) -> None:
    """A signature for one service must not be accepted by another."""
    service = service_of(request)
    expected = SIGNING_NAMES.get(service, service)
    if claim.service != expected:
        text = f"Credential should be scoped to correct service: {expected!r}, not {claim.service[:32]!r}."
        # S3 has a code of its own for it (AuthorizationHeaderMalformed).
        raise WireError("IncompleteSignature" if expected == "s3" else "SignatureDoesNotMatch", text, 403)


def _check_signed_headers(request: Request, claim: _SignatureClaim) -> None:
    if "host" not in claim.signed:
        raise WireError("IncompleteSignature", "The host header must be signed.")
    sent = {name for name in request.headers if name.startswith("x-amz-") and name != HASH}
    unsigned = sorted(sent - set(claim.signed))
    if unsigned:
        text = f"There were headers present in the request which were not signed: {', '.join(unsigned)[:512]}"
        raise WireError("AccessDenied", text, 403)


def _secret(secret_of: SecretOf, key: str) -> str:
    secret = secret_of(key)
    if secret is None:
        raise WireError("InvalidClientTokenId", "The access key you provided does not exist in our records.", 403)
    return secret


_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your key and signing method."
)


def _check_signature(expected: str, signature: str) -> None:
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogateescape")):
        raise WireError("SignatureDoesNotMatch", _MISMATCH, 403)


# Version 4 -----------------------------------------------------------------------------------------------------------


def _verify_at_end(chunks: Iterator[bytes], compare: Callable[[str], None]) -> Iterator[bytes]:
    """The body; at its end the signature is checked with the body's hash."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    compare(digest.hexdigest())


def _canonical_head(request: Request, claim: _SignatureClaim) -> str:
    """The canonical request without its last line, the hash of the body."""
    pairs = sorted(
        (_quoted(name), _quoted(value))
        for name, value in parse_qsl(request.query, keep_blank_values=True)
        if claim.expires is None or name != "X-Amz-Signature"
    )
    lines = [
        request.method,
        _canonical_path(request.path, claim.service),
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{_canonical_value(request, name)}" for name in claim.signed),
        "",
        ";".join(claim.signed),
    ]
    return "\n".join(lines)


def _canonical_path(path: str, service: str) -> str:
    once = quote(unquote_to_bytes(path), safe="/-_.~")
    if service == "s3":
        return once
    # Other services sign the path as sent, encoded a second time, without dot segments and double slashes.
    normal = normpath(path) if path else "/"
    normal = re.sub("^/+", "/", normal) + ("/" if path.endswith("/") and normal != "/" else "")
    return quote(normal, safe="/-_.~")


def _canonical_value(request: Request, name: str) -> str:
    if name not in request.headers:
        # A proxy may have removed a signed header; without it no signature can match.
        raise WireError("SignatureDoesNotMatch", f"The signed header {name[:128]!r} is not in the request.", 403)
    return " ".join(request.headers[name].split())


def _payload_hash(request: Request, claim: _SignatureClaim, query: Mapping[str, str]) -> str | None:
    """The signed hash of the body; None if it must be computed from the body."""
    declared = request.headers.get(HASH)
    if claim.expires is not None:
        # A presigned URL covers the body only if it has the hash; an unsigned header proves nothing.
        url_hash = query.get("X-Amz-Content-Sha256") or query.get("X-Amz-Content-SHA256")
        declared = declared if HASH in claim.signed else url_hash
        if url_hash:
            request.headers = {**request.headers, HASH: url_hash}
    if claim.service == "s3":
        if claim.expires is not None:
            return declared or UNSIGNED
        if not declared:
            raise WireError("InvalidRequest", f"Missing required header for this request: {HASH}")
        return declared
    if declared and declared != UNSIGNED and not declared.startswith(STREAMING):
        return declared
    if service_of(request) == "s3":
        # S3's operations may not read the body, so its hash must be known before.
        raise WireError("IncompleteSignature", f"The credential's scope is of {claim.service!r}; expected 's3'.")
    return None


def _to_sign(algorithm: str, claim: _SignatureClaim, last: str) -> str:
    return "\n".join((algorithm, claim.timestamp, claim.scope, last))


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


def _verify_version_2(request: Request, query: Mapping[str, str], secret_of: SecretOf, now: datetime) -> str:
    expires = query.get("Expires", "")
    if not re.fullmatch(r"[0-9]{1,11}", expires):
        raise WireError("AccessDenied", f"Invalid date (should be seconds since epoch): {expires[:32]}", 403)
    if now.timestamp() > int(expires):
        raise WireError("AccessDenied", "Request has expired", 403)
    key = query["AWSAccessKeyId"]
    secret = _secret(secret_of, key)
    # Headers may be in the URL; those that are sent take precedence.
    fields = {name.lower(): value for name, value in query.items()} | dict(request.headers)
    amazon = sorted((name, value) for name, value in fields.items() if name.startswith("x-amz-"))
    lines = [request.method, fields.get("content-md5", ""), fields.get("content-type", ""), expires]
    lines += [f"{name}:{value.strip()}" for name, value in amazon]
    text = "\n".join([*lines, _resource(request)])
    digest = hmac.digest(secret.encode(), text.encode("utf-8", "replace"), "sha1")
    _check_signature(b64encode(digest).decode(), query["Signature"])
    decode_body(request)
    return key


def _resource(request: Request) -> str:
    bucket = virtual_bucket(request)
    path = f"/{bucket}{request.path}" if bucket else request.path
    parts = [part.split("=", 1) for part in request.query.split("&")]
    signed = sorted((part for part in parts if part[0] in _SUBRESOURCES), key=lambda part: part[0])
    text = "&".join("=".join([part[0], *(unquote(value) for value in part[1:])]) for part in signed)
    return f"{path}?{text}" if text else path


def _query_fields(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.query, keep_blank_values=True, max_num_fields=None))
