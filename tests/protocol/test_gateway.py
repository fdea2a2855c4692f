"""The order of work, and that whatever goes wrong becomes an answer in the service's own form."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from live_wire import EVERYTHING, Echo

from luthier.errors import SettingError
from luthier.protocol.call import Principal
from luthier.protocol.errors import WireError
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response

JSON = {"content-type": "application/x-amz-json-1.1"}


def json_request(operation: str = "DeleteModel", body: bytes = b'{"ModelName": "m"}', **headers: str) -> Request:
    given = {**JSON, "x-amz-target": f"SageMaker.{operation}", **headers}
    return Request(method="POST", path="/", headers=given, chunks=iter([body]))


def gateway(
    echo: Echo | None = None, operations: Any = EVERYTHING, authenticate: Any = None, **options: Any
) -> Gateway:
    return Gateway(echo or Echo(), operations, authenticate or (lambda request, service: Principal()), **options)


def said(response: Response) -> tuple[int, str]:
    assert isinstance(response.body, bytes)
    return response.status, json.loads(response.body).get("__type", "")


def test_a_call_has_all_that_its_operation_needs() -> None:
    echo, who = Echo(), Principal("210987654321", "arn:aws:iam::210987654321:user/u")
    request = json_request(
        authorization="AWS4-HMAC-SHA256 Credential=AK/20300101/eu-west-1/sagemaker/aws4_request, ..."
    )
    response = gateway(echo, authenticate=lambda request, service: who).respond(request)
    assert response.status == 200
    (call,) = echo.calls
    assert (call.service, call.operation, call.parameters) == ("sagemaker", "DeleteModel", {"ModelName": "m"})
    assert (call.region, call.account, call.request) == ("eu-west-1", "210987654321", request)
    assert response.headers["x-amzn-RequestId"] == call.request_id
    assert call.arn("model", "M") == "arn:aws:sagemaker:eu-west-1:210987654321:model/m"


def test_request_ids_differ() -> None:
    echo = Echo()
    for _ in range(3):
        gateway(echo).respond(json_request())
    assert len({call.request_id for call in echo.calls}) == 3


def test_the_caller_is_known_before_parameters_are_read() -> None:
    def refuse(request: Request, service: str) -> Principal:
        raise WireError("AccessDenied", "no", 403)

    assert said(gateway(authenticate=refuse).respond(json_request(body=b"{"))) == (403, "AccessDeniedException")


def test_who_is_refused_is_not_read_from() -> None:
    def refuse(request: Request, service: str) -> Principal:
        raise WireError("AccessDenied", "no", 403)

    def body() -> Any:
        yield pytest.fail("the body was read")

    form = {"content-type": "application/x-www-form-urlencoded"}
    for request in (
        json_request(),
        Request(method="POST", path="/", headers=form),
        Request(method="PUT", path="/b/k"),
        Request(method="POST", path="/endpoints/e/invocations"),
    ):
        request.chunks = body()
        assert gateway(authenticate=refuse).respond(request).status == 403


def test_parameters_are_right_before_the_operation_runs() -> None:
    echo = Echo()
    assert said(gateway(echo).respond(json_request(body=b"{}"))) == (400, "ValidationException")
    assert said(gateway(echo).respond(json_request(body=b"[1]"))) == (400, "SerializationException")
    assert echo.calls == []


def test_an_operation_that_is_not_implemented(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    some = gateway(operations={"sagemaker": {"CreateModel"}})
    assert said(some.respond(json_request())) == (400, "UnknownOperationException")
    assert len(caplog.records) == 1
    assert "DeleteModel" in caplog.text
    assert said(some.respond(json_request("MakeCoffee"))) == (400, "UnknownOperationException")
    s3 = some.respond(Request(method="GET", path="/bucket"))
    assert (s3.status, b"MethodNotAllowed" in s3.body) == (405, True)


def test_luthier_s_own_errors() -> None:
    echo = Echo()
    echo.answers["DeleteModel"] = SettingError("epochs must be positive")
    response = gateway(echo).respond(json_request())
    assert json.loads(response.body) == {"__type": "ValidationException", "Message": "epochs must be positive"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), KeyError("secret"), RecursionError("secret"), MemoryError("secret")]
)
def test_what_nobody_foresaw(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    echo = Echo()
    echo.answers["DeleteModel"] = error
    response = gateway(echo).respond(json_request())
    assert said(response) == (500, "InternalFailure")
    assert b"secret" not in response.body
    request_id = response.headers["x-amzn-RequestId"]
    assert request_id.encode() in response.body
    assert "secret" in caplog.text
    assert request_id in caplog.text


def test_a_result_that_cannot_be_serialised() -> None:
    echo = Echo()
    echo.answers["ListModels"] = {"Models": [{"CreationTime": "not a time"}]}
    assert said(gateway(echo).respond(json_request("ListModels", b"{}"))) == (500, "InternalFailure")


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (json_request(body=b" " * (4 << 20) + b"{}"), "RequestEntityTooLargeException"),
        (Request(method="POST", path="/b", query="delete", chunks=iter([b" " * (5 << 20)])),
         "MaxMessageLengthExceeded"),
        (Request(method="POST", path="/endpoints/e/invocations", chunks=iter([b" " * (6 << 20), b"x"])),
         "RequestEntityTooLargeException"),
        (Request(method="POST", path="/", headers={"content-type": "application/x-www-form-urlencoded"},
         chunks=iter([b"a" * (1 << 20)])),
         "RequestEntityTooLarge"),
    ],
)  # fmt: skip
def test_bodies_are_bounded(request_: Request, limit: str) -> None:
    response = gateway().respond(request_)
    assert 400 <= response.status < 500
    assert limit.encode() in response.body


def test_a_body_that_breaks_off_is_the_client_s_fault() -> None:
    def breaks() -> Any:
        yield b'{"Mod'
        raise WireError("RequestTimeout", "gone")

    request = json_request()
    request.chunks = breaks()
    assert said(gateway().respond(request)) == (408, "RequestTimeoutException")


def test_names_that_a_client_makes_up_are_not_observed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen: list[tuple[str, str]] = []
    watched = gateway(observe=lambda service, operation, status, seconds: seen.append((service, operation)))
    watched.respond(Request(method="POST", path="/", headers={"x-amz-target": "Made.Up"}))
    watched.respond(Request(method="GET", path="/", headers={"host": "made-up.amazonaws.com"}))
    assert seen == [("-", "-"), ("-", "-")]
    assert "ade" not in caplog.text.replace("gateway", "")


def test_an_observer_that_fails_is_no_failure_of_the_answer() -> None:
    def fails(service: str, operation: str, status: int, seconds: float) -> None:
        raise RuntimeError

    assert gateway(observe=fails).respond(json_request()).status == 200


def test_a_region_is_of_a_region_s_length() -> None:
    echo = Echo()
    scope = f"AWS4-HMAC-SHA256 Credential=AK/20300101/{'r' * 300}/sagemaker/aws4_request, SignedHeaders=host"
    gateway(echo).respond(json_request(authorization=scope))
    assert echo.calls[0].region == "us-east-1"


def test_answers_are_observed() -> None:
    seen: list[tuple[str, str, int]] = []
    watched = gateway(observe=lambda service, operation, status, seconds: seen.append((service, operation, status)))
    watched.respond(json_request())
    watched.respond(json_request(body=b"{}"))
    watched.respond(json_request("MakeCoffee"))
    watched.respond(Request(method="GET", path="/%"))
    assert seen == [
        ("sagemaker", "DeleteModel", 200),
        ("sagemaker", "DeleteModel", 400),
        ("sagemaker", "-", 400),
        ("s3", "-", 400),
    ]
