"""Signatures: botocore's own signers against ours, AWS's published examples, and every way of being wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from luthier.protocol.errors import WireError
from luthier.protocol.message import Request
from luthier.protocol.signature import verify

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
CREDENTIALS = Credentials(KEY, SECRET)
SIGNERS = {"s3": S3SigV4Auth, "sagemaker": SigV4Auth, "sts": SigV4Auth}
PRESIGNERS = {"s3": S3SigV4QueryAuth, "sts": SigV4QueryAuth}


def secret_of(key: str) -> str | None:
    return SECRET if key == KEY else None


def now() -> datetime:
    return datetime.now(UTC)


def signed(service: str = "s3", credentials: Credentials = CREDENTIALS, **options: Any) -> Request:
    """A request signed in its headers."""
    sent = AWSRequest(
        method=options.get("method", "PUT"),
        url=options.get("url", "http://127.0.0.1:8777/bucket/a%20b/%C3%BC%2Bc?partNumber=1&uploadId=a%2Fb"),
        headers={"content-type": "text/csv", "x-amz-meta-a": "  two   blanks "} | options.get("headers", {}),
        data=options.get("body", b"payload"),
    )
    SIGNERS[service](credentials, service, "eu-west-1").add_auth(sent)
    return received(sent, options.get("body", b"payload"))


def received(sent: AWSRequest, body: bytes = b"") -> Request:
    parts = urlsplit(sent.url)
    headers = {name.lower(): str(value) for name, value in sent.headers.items()} | {"host": parts.netloc}
    return Request(
        method=sent.method, path=parts.path, query=parts.query, headers=headers, chunks=iter([body[:3], body[3:]])
    )


def presigned(service: str = "s3", expires: int = 60, **options: Any) -> Request:
    sent = AWSRequest(
        method=options.get("method", "GET"),
        url=options.get("url", "http://127.0.0.1:8777/bucket/a%20b?versionId=1&response-content-type=a%2Fb"),
        headers=options.get("headers", {}),
    )
    PRESIGNERS[service](CREDENTIALS, service, "eu-west-1", expires=expires).add_auth(sent)
    return received(sent, options.get("body", b""))


def presigned_second(expires: int = 60, **options: Any) -> Request:
    url = "http://127.0.0.1:8777/bucket/a%20b?versionId=a%2Fb&response-content-type=text%2Fcsv&ignored=1"
    sent = AWSRequest(method=options.get("method", "GET"), url=url, headers=options.get("headers", {}))
    HmacV1QueryAuth(CREDENTIALS, expires=expires).add_auth(sent)
    request = received(sent)
    request.headers = {"host": "127.0.0.1:8777"} | options.get("sent", {})
    return request


def refusal(request: Request, at: datetime | None = None) -> WireError:
    def read() -> None:
        verify(request, secret_of, at or now())
        request.body(10**7)

    with pytest.raises(WireError) as caught:
        read()
    return caught.value


@pytest.mark.parametrize("service", SIGNERS)
def test_a_good_signature_in_headers(service: str) -> None:
    request = signed(service)
    assert verify(request, secret_of, now()) == KEY
    assert request.body(100) == b"payload"


@pytest.mark.parametrize(
    "url", ["http://h/", "http://h/bucket?list-type=2&prefix=&delimiter=%2F", "http://h/b/a//b/../c"]
)
def test_a_good_signature_of_an_unusual_url(url: str) -> None:
    assert verify(signed(url=url, method="GET", body=b""), secret_of, now()) == KEY


@pytest.mark.parametrize(
    ("scope", "url", "target", "expected"),
    [
        ("sts", "http://h/", "SageMaker.CreateModel", "sagemaker"),
        ("sagemaker", "http://h/", "Logs_20140328.GetLogEvents", "logs"),
        ("sagemaker", "http://h/", "GraniteServiceVersion20100801.GetMetricStatistics", "monitoring"),
        ("sts", "http://h/endpoints/e/invocations", "", "sagemaker"),
    ],
)
def test_a_signature_for_another_service_is_refused(scope: str, url: str, target: str, expected: str) -> None:
    headers = {"x-amz-target": target} if target else {}
    error = refusal(signed(scope, url=url, method="POST", headers=headers))
    assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)
    assert f"correct service: {expected!r}, not {scope!r}" in str(error)


@pytest.mark.parametrize("url", ["http://h/endpoints/a%20b/invocations", "http://h//a/./b/../c/?x=1&x=0", "http://h"])
def test_a_good_signature_of_an_unusual_url_beside_s3(url: str) -> None:
    assert verify(signed("sagemaker", url=url, method="POST"), secret_of, now()) == KEY


@pytest.mark.parametrize(
    ("options", "credentials", "code"),
    [
        ({}, Credentials(KEY, "wrong"), "SignatureDoesNotMatch"),
        ({}, Credentials("AKIAWRONG", SECRET), "InvalidClientTokenId"),
    ],
)
@pytest.mark.parametrize("service", SIGNERS)
def test_the_wrong_key(service: str, options: dict[str, Any], credentials: Credentials, code: str) -> None:
    assert refusal(signed(service, credentials, **options)).code == code


def _header(name: str, value: str) -> Any:
    def tamper(request: Request) -> None:
        request.headers = {**request.headers, name: value}

    return tamper


def _set(name: str, value: Any) -> Any:
    return lambda request: setattr(request, name, value)


@pytest.mark.parametrize(
    ("tamper", "code"),
    [
        (_header("content-type", "text/html"), "SignatureDoesNotMatch"),
        (_header("x-amz-acl", "public-read"), "AccessDenied"),
        (_header("x-amz-copy-source", "secret/file"), "AccessDenied"),
        (_header("host", "other"), "SignatureDoesNotMatch"),
        (_header("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), "SignatureDoesNotMatch"),
        (_set("method", "DELETE"), "SignatureDoesNotMatch"),
        (_set("path", "/bucket/other"), "SignatureDoesNotMatch"),
        (_set("query", "partNumber=2&uploadId=a%2Fb"), "SignatureDoesNotMatch"),
        (_set("query", ""), "SignatureDoesNotMatch"),
        (_set("chunks", iter([b"other"])), "XAmzContentSHA256Mismatch"),
        (_set("chunks", iter([])), "XAmzContentSHA256Mismatch"),
    ],
)
def test_a_tampered_request(tamper: Any, code: str) -> None:
    request = signed()
    tamper(request)
    assert refusal(request).code == code


def test_a_tampered_body_beside_s3() -> None:
    request = signed("sagemaker")
    request.chunks = iter([b"other"])
    assert refusal(request).code == "SignatureDoesNotMatch"


def test_an_unsigned_payload_is_for_s3_alone() -> None:
    headers = {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    assert refusal(signed("sagemaker", headers=headers)).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_skewed_clock(minutes: int) -> None:
    assert refusal(signed(), now() + timedelta(minutes=minutes)).code == "RequestTimeTooSkewed"


@pytest.mark.parametrize("minutes", [-14, 14])
def test_a_clock_that_is_a_little_off(minutes: int) -> None:
    assert verify(signed(), secret_of, now() + timedelta(minutes=minutes)) == KEY


def test_no_signature() -> None:
    request = Request(method="GET", path="/", headers={"host": "h"})
    assert refusal(request).code == "MissingAuthenticationToken"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Basic abc", "IncompleteSignature"),
        ("AWS AKIA:abcd", "IncompleteSignature"),
        ("AWS4-HMAC-SHA256", "IncompleteSignature"),
        ("AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=" + "0" * 64, "IncompleteSignature"),
        (f"AWS4-HMAC-SHA256 Credential={KEY}/20300101/r/s3/aws4_request, SignedHeaders=host, Signature={'0' * 64}",
         "IncompleteSignature"),
        ("\xff\xfe", "IncompleteSignature"),
    ],
)  # fmt: skip
def test_a_malformed_authorization(header: str, code: str) -> None:
    request = signed()
    request.headers = {**request.headers, "authorization": header}
    assert refusal(request).code == code


@pytest.mark.parametrize(
    ("old", "new"),
    [("SignedHeaders=", "SignedHeaders=a;"), ("host;", ""), ("content-type;host;", "host;content-type;")],
)
def test_signed_headers_that_cannot_be(old: str, new: str) -> None:
    request = signed()
    request.headers = {**request.headers, "authorization": request.headers["authorization"].replace(old, new)}
    assert refusal(request).code in ("SignatureDoesNotMatch", "IncompleteSignature")


def test_a_signed_header_in_s3_needs_the_hash() -> None:
    request = signed()
    request.headers = {name: value for name, value in request.headers.items() if name != "x-amz-content-sha256"}
    assert refusal(request).code in ("InvalidRequest", "SignatureDoesNotMatch")


@pytest.mark.parametrize("service", PRESIGNERS)
def test_a_good_url(service: str) -> None:
    url = (
        "http://127.0.0.1/?Action=GetCallerIdentity&Version=2011-06-15"
        if service == "sts"
        else "http://h/b/a%20b?x=%2F"
    )
    assert verify(presigned(service, url=url), secret_of, now()) == KEY


def test_a_good_url_to_put_to() -> None:
    request = presigned(method="PUT", body=b"anything")
    assert verify(request, secret_of, now()) == KEY
    assert request.body(100) == b"anything"


def test_a_url_may_say_the_hash_of_its_body() -> None:
    for body, code in ((b"anything", ""), (b"other", "XAmzContentSHA256Mismatch")):
        url = f"http://127.0.0.1/b/k?X-Amz-Content-Sha256={hashlib.sha256(b'anything').hexdigest()}"
        sent = AWSRequest(method="PUT", url=url)
        signer = S3SigV4QueryAuth(CREDENTIALS, "s3", "eu-west-1", expires=60)
        signer.payload = lambda request: hashlib.sha256(b"anything").hexdigest()
        signer.add_auth(sent)
        request = received(sent, body)
        if code:
            assert refusal(request).code == code
        else:
            assert verify(request, secret_of, now()) == KEY
            assert request.body(100) == body


def test_a_hash_beside_a_url_that_does_not_say_it() -> None:
    request = presigned(method="PUT", body=b"anything")
    request.headers = {**request.headers, "x-amz-content-sha256": hashlib.sha256(b"anything").hexdigest()}
    assert verify(request, secret_of, now()) == KEY
    assert request.body(100) == b"anything"


def test_a_url_that_expired_or_is_not_valid_yet() -> None:
    assert refusal(presigned(expires=60), now() + timedelta(seconds=62)).code == "AccessDenied"
    assert refusal(presigned(expires=60), now() - timedelta(minutes=16)).code == "AccessDenied"


@pytest.mark.parametrize("expires", [0, 604801])
def test_a_url_for_too_long(expires: int) -> None:
    assert refusal(presigned(expires=expires)).code == "IncompleteSignature"


@pytest.mark.parametrize(
    "tamper",
    [
        _set("path", "/bucket/other"),
        _set("method", "PUT"),
        lambda request: setattr(request, "query", request.query.replace("versionId=1", "versionId=2")),
        lambda request: setattr(request, "query", request.query + "&acl"),
        lambda request: setattr(request, "query", request.query.replace("X-Amz-Expires=60", "X-Amz-Expires=600")),
    ],
)
def test_a_tampered_url(tamper: Any) -> None:
    request = presigned()
    tamper(request)
    assert refusal(request).code == "SignatureDoesNotMatch"


def test_a_url_does_not_carry_headers_nobody_signed() -> None:
    request = presigned()
    request.headers = {**request.headers, "x-amz-acl": "public-read"}
    assert refusal(request).code == "AccessDenied"


def test_a_header_and_a_url_at_once() -> None:
    request = presigned()
    request.headers = {**request.headers, "authorization": "AWS4-HMAC-SHA256 x"}
    assert refusal(request).code == "InvalidArgument"


def test_a_good_url_of_version_2() -> None:
    request = presigned_second()
    assert verify(request, secret_of, now()) == KEY


def test_a_good_url_of_version_2_that_holds_headers() -> None:
    headers = {"content-type": "text/csv", "x-amz-meta-a": "b", "content-md5": "x=="}
    assert verify(presigned_second(method="PUT", headers=headers, sent=headers), secret_of, now()) == KEY
    assert verify(presigned_second(method="PUT", headers=headers), secret_of, now()) == KEY


@pytest.mark.parametrize(
    ("tamper", "code"),
    [
        (_set("path", "/bucket/other"), "SignatureDoesNotMatch"),
        (_set("method", "DELETE"), "SignatureDoesNotMatch"),
        (_header("x-amz-acl", "public-read"), "SignatureDoesNotMatch"),
        (_header("content-type", "text/html"), "SignatureDoesNotMatch"),
        (lambda request: setattr(request, "query", request.query.replace("a%2Fb", "other")), "SignatureDoesNotMatch"),
        (lambda request: setattr(request, "query", request.query.replace(KEY, "AKIAWRONG")), "InvalidClientTokenId"),
        (lambda request: setattr(request, "query", request.query.replace("Expires=", "Expires=x")), "AccessDenied"),
    ],
)
def test_a_tampered_url_of_version_2(tamper: Any, code: str) -> None:
    request = presigned_second()
    tamper(request)
    assert refusal(request).code == code


def test_a_url_of_version_2_that_expired() -> None:
    assert refusal(presigned_second(), now() + timedelta(seconds=62)).code == "AccessDenied"


# AWS's examples, of its pages on Signature Version 4 for S3.
THEN = datetime(2013, 5, 24, tzinfo=UTC)
SCOPE = f"{KEY}/20130524/us-east-1/s3/aws4_request"


def test_the_published_url() -> None:
    query = (
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={SCOPE.replace('/', '%2F')}&X-Amz-Date=20130524T000000Z"
        "&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    request = Request(method="GET", path="/test.txt", query=query, headers={"host": "examplebucket.s3.amazonaws.com"})
    assert verify(request, secret_of, THEN + timedelta(hours=1)) == KEY


def _published_chunks(trailer: bool) -> Request:
    body = b"a" * 66560
    if trailer:
        seed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
        names = "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length"
        names += ";x-amz-storage-class;x-amz-trailer"
        extra = {"x-amz-trailer": "x-amz-checksum-crc32c"}
        marks = ["b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
                 "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
                 "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992"]  # fmt: skip
        end = b"x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:"
        end += b"d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
    else:
        seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
        names = "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length"
        names += ";x-amz-storage-class"
        extra = {"content-length": "66824"}
        marks = ["ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
                 "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
                 "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"]  # fmt: skip
        end = b"\r\n"
    parts = [body[:65536], body[65536:], b""]
    framed = b"".join(
        b"%x;chunk-signature=%s\r\n%s" % (len(part), mark.encode(), part + b"\r\n" if part else b"")
        for part, mark in zip(parts, marks, strict=True)
    )
    headers = {
        "host": "s3.amazonaws.com",
        "x-amz-date": "20130524T000000Z",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
        "authorization": f"AWS4-HMAC-SHA256 Credential={SCOPE},SignedHeaders={names},Signature={seed}",
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + ("-TRAILER" if trailer else ""),
        "content-encoding": "aws-chunked",
        "x-amz-decoded-content-length": "66560",
        **extra,
    }
    whole = framed + end
    return Request(
        method="PUT", path="/examplebucket/chunkObject.txt", query="", headers=headers, chunks=_pieces(whole)
    )


def _pieces(body: bytes, size: int = 1000) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


@pytest.mark.parametrize("trailer", [False, True])
def test_the_published_chunks(trailer: bool) -> None:
    request = _published_chunks(trailer)
    assert verify(request, secret_of, THEN) == KEY
    assert hashlib.sha256(request.body(10**6)).digest() == hashlib.sha256(b"a" * 66560).digest()
    assert request.headers["content-length"] == "66560"
    assert "content-encoding" not in request.headers
    assert request.trailers == ({"x-amz-checksum-crc32c": "sOO8/Q=="} if trailer else {})


@pytest.mark.parametrize(
    ("trailer", "old", "new"),
    [
        (False, b"aaaaaaaa\r\n400;", b"aaaaaaab\r\n400;"),
        (True, b"aaaaaaaa\r\n400;", b"aaaaaaab\r\n400;"),
        (False, b"ad80c7", b"ad80c8"),
        (True, b"b474d8", b"b474d9"),
        (False, b"b6c6ea", b"b6c6eb"),
        (True, b"sOO8", b"sOO9"),
        (True, b"d81f82", b"d81f83"),
        (True, b"x-amz-trailer-signature", b"x-amz-another"),
    ],
)
def test_tampered_chunks(trailer: bool, old: bytes, new: bytes) -> None:
    request = _published_chunks(trailer)
    whole = b"".join(request.chunks)
    assert old in whole
    request.chunks = _pieces(whole.replace(old, new, 1))
    assert refusal(request, THEN).code == "SignatureDoesNotMatch"
