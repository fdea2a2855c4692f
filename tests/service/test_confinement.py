"""No name, header, path or size that a request brings reaches outside its room, or keeps others from being answered."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from api.wire_client import automl_job, channel, training_job
from server_process import ServerProcess, server
from service.whole_wire import VARIANT, WholeWire, whole_wire

from luthier.errors import LuthierError
from luthier.protocol.message import Request, Response
from luthier.protocol.service_protocols import SERVICE_PROTOCOLS

CANARY = "the canary that nobody may read or touch"
OUTSIDE = ("..", ".", "../canary.txt", "../../etc/passwd", "/etc/passwd", "..\\canary.txt", "a/../../canary.txt",
           "~root",
           "a\0b", "%2e%2e%2fcanary.txt", "..%2fcanary.txt", "....//canary.txt", "file:///etc/passwd", "$HOME", "`id`",
           "a\nb", "-rf", "con:", "\u2025/canary.txt", "\uff0e\uff0e/canary.txt")  # fmt: skip
JSON = "application/x-amz-json-1.1"
NAMED = {
    "DescribeTrainingJob": "TrainingJobName", "StopTrainingJob": "TrainingJobName",
    "DeleteTrainingJob": "TrainingJobName",
    "DescribeAutoMLJobV2": "AutoMLJobName", "StopAutoMLJob": "AutoMLJobName", "DescribeModel": "ModelName",
    "DeleteModel": "ModelName", "DescribeEndpoint": "EndpointName", "DeleteEndpoint": "EndpointName",
    "DescribeEndpointConfig": "EndpointConfigName", "DeleteEndpointConfig": "EndpointConfigName",
    "DescribeHub": "HubName",
}  # fmt: skip


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeWire]:
    """A home with a canary beside it."""
    root = tmp_path_factory.mktemp("room")
    (root / "canary.txt").write_text(CANARY)
    with whole_wire(root / "home") as made:
        yield made


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Beside the home there is nothing but the canary, as it was; in it only what belongs there."""
    yield
    if "wire" in request.fixturenames:
        home: Path = request.getfixturevalue("wire").home
        assert {path.name for path in home.parent.iterdir()} == {"canary.txt", "home"}
        assert (home.parent / "canary.txt").read_text() == CANARY
        rooms = {path.name for path in home.iterdir()} - {"luthier.sqlite-wal", "luthier.sqlite-shm"}
        assert rooms <= {"luthier.sqlite", "objects", "jobs", "endpoints", "model.sock"}
        names = [path.relative_to(home / "objects").parts for path in (home / "objects").rglob("*") if path.is_file()]
        assert all(set(parts[-1]) <= set("0123456789abcdef") for parts in names), names


def ask(wire: WholeWire, method: str, path: str, body: bytes = b"", query: str = "", **headers: str) -> Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = wire.answer(
        Request(method=method, path=path, query=query, headers=sent, chunks=iter((body,)), peer="127.0.0.1")
    )
    assert isinstance(answer.body, bytes)
    assert CANARY.encode() not in answer.body
    assert b"root:x:0" not in answer.body
    return answer


def call(wire: WholeWire, name: str, parameters: dict[str, Any], target: str = "SageMaker") -> Response:
    return ask(wire, "POST", "/", json.dumps(parameters).encode(), x_amz_target=f"{target}.{name}", content_type=JSON)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_resource_is_named_so(wire: WholeWire, name: str) -> None:
    asked = [(operation, {member: name}) for operation, member in NAMED.items()] + [
        ("CreateTrainingJob", training_job(name)),
        ("CreateAutoMLJobV2", automl_job(name)),
        ("CreateModel", {"ModelName": name, "PrimaryContainer": {"ModelDataUrl": "s3://bucket/a"}}),
        ("CreateEndpointConfig", {"EndpointConfigName": name, "ProductionVariants": [VARIANT]}),
        ("CreateEndpointConfig", {"EndpointConfigName": "ok", "ProductionVariants": [VARIANT | {"VariantName": name}]}),
        ("CreateEndpoint", {"EndpointName": name, "EndpointConfigName": "a"}),
        ("DescribeHubContent", {"HubName": name, "HubContentType": "Model", "HubContentName": "luthier-tiny"}),
        ("DescribeHubContent", {"HubName": "SageMakerPublicHub", "HubContentType": "Model", "HubContentName": name}),
        ("ListTags", {"ResourceArn": name}),
        ("ListTags", {"ResourceArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}"}),
    ]
    for operation, parameters in asked:
        answer = call(wire, operation, parameters)
        if operation != "ListTags":
            assert answer.status in (400, 404), (operation, name, answer.body)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_log_is_named_so(wire: WholeWire, name: str) -> None:
    for group, stream in ((name, "x"), ("/aws/sagemaker/TrainingJobs", name), (f"/aws/sagemaker/Endpoints/{name}", "a"),
                          ("/aws/sagemaker/Endpoints/a", name)):  # fmt: skip
        given = {"logGroupName": group, "logStreamName": stream}
        assert call(wire, "GetLogEvents", given, "Logs_20140328").status == 400
        call(wire, "DescribeLogStreams", {"logGroupName": group, "logStreamNamePrefix": stream}, "Logs_20140328")
        call(wire, "FilterLogEvents", {"logGroupName": group, "logStreamNames": [stream]}, "Logs_20140328")
    for token in (name, f"f/{name}", f"0/{name}"):
        given = {"logGroupName": "/aws/sagemaker/TrainingJobs", "nextToken": token}
        call(wire, "FilterLogEvents", given, "Logs_20140328")


@pytest.mark.parametrize("path", [
    "/../canary.txt", "/bucket/../../canary.txt", "/%2e%2e/canary.txt", "/bucket/%2e%2e%2f%2e%2e%2fcanary.txt",
    "//etc/passwd",
    "/..%2f..%2fetc%2fpasswd", "/.", "/..", "/bucket/..", "/_luthier/../canary.txt", "/_luthier/%2e%2e/canary.txt",
    "/luthier.sqlite", "/objects/blobs", "/bucket/..%5c..%5ccanary.txt", "/home/luthier.sqlite",
])  # fmt: skip
def test_no_path_is_one_of_the_disk_s(wire: WholeWire, path: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        answer = ask(wire, method, path, b"x" if method == "PUT" else b"")
        assert answer.status < 300 or 400 <= answer.status < 500
    ask(wire, "PUT", "/bucket/copy", x_amz_copy_source=path)
    ask(wire, "PUT", "/bucket/renamed", query="renameObject", x_amz_rename_source=path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_upload_is_named_so(wire: WholeWire, name: str) -> None:
    upload = quote(name, safe="")
    for method, query in (("PUT", f"uploadId={upload}&partNumber=1"), ("POST", f"uploadId={upload}"),
                          ("GET", f"uploadId={upload}"), ("DELETE", f"uploadId={upload}")):  # fmt: skip
        assert 400 <= ask(wire, method, "/bucket/a", b"x", query).status < 500


@pytest.mark.parametrize("host", ["..", "../../canary.txt", "canary.txt.s3.amazonaws.com", "...s3.amazonaws.com",
                                  "..localhost",
                                  "a/../..s3.amazonaws.com", "\0", "x" * 5000, "[::1", "evil.example"])  # fmt: skip
def test_no_host_is_another_room(wire: WholeWire, host: str) -> None:
    for path in ("/", "/canary.txt", "/../canary.txt"):
        assert ask(wire, "GET", path, host=host).status in (200, 400, 403, 404, 405)


@pytest.mark.parametrize("target", ["SageMaker.__class__", "SageMaker.../x", "..", "SageMaker.", ".CreateModel",
                                    "os.system",
                                    "SageMaker.OPERATIONS", "SageMaker.CreateModel.x", "Logs_20140328.CreateModel",
                                    "SageMaker.createmodel", "s3.PutObject", "SageMaker.\u0130"])  # fmt: skip
def test_no_target_is_anything_else(wire: WholeWire, target: str) -> None:
    answer = ask(wire, "POST", "/", b"{}", x_amz_target=target, content_type=JSON)
    assert 400 <= answer.status < 500
    assert b"Traceback" not in answer.body


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "/etc/passwd", "s3://../canary.txt", "s3:///etc/passwd",
                                 "../canary.txt",
                                 "http://169.254.169.254/latest/meta-data/", "s3://bucket/../../canary.txt", "s3://..",
                                 "https://example.com/x.tar.gz", "s3://bucket@evil/x",
                                 "S3://bucket/a\n/etc"])  # fmt: skip
def test_an_address_is_an_object_s_or_refused(wire: WholeWire, uri: str, tmp_path: Path) -> None:
    """Taken or not by the operation: what the supervisor then does with it stays below the folder that it names."""
    wire.seed()
    call(wire, "CreateTrainingJob", training_job("reader", InputDataConfig=[channel("training", uri)]))
    call(wire, "CreateTrainingJob", training_job("writer", OutputDataConfig={"S3OutputPath": uri}))
    call(wire, "CreateModel", {"ModelName": "far", "PrimaryContainer": {"ModelDataUrl": uri}})
    target = tmp_path / "room" / "target"
    with pytest.raises((LuthierError, OSError)):
        wire.objects.download_prefix(uri, target)
    assert not target.exists() or not [path for path in target.rglob("*") if path.is_file()]
    source = tmp_path / "source"
    source.write_text("x")
    with contextlib.suppress(LuthierError):  # a key may well be called so
        wire.objects.upload_file(source, uri)
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "room"}


SERVICES: dict[str, tuple[str, str, dict[str, str]]] = {
    "sagemaker": ("POST", "/", {"x-amz-target": "SageMaker.ListModels", "content-type": JSON}),
    "logs": ("POST", "/", {"x-amz-target": "Logs_20140328.DescribeLogGroups", "content-type": JSON}),
    "sagemaker-runtime": ("POST", "/endpoints/a/invocations", {}),
    "sts": ("POST", "/", {"content-type": "application/x-www-form-urlencoded"}),
    "iam": ("POST", "/", {"content-type": "application/x-www-form-urlencoded",
                          "authorization": "AWS4-HMAC-SHA256 Credential=AK/20300101/us-east-1/iam/aws4_request, "
                          "SignedHeaders=host, Signature=0"}),
    "s3": ("POST", "/bucket?delete", {}),
    "nobody": ("POST", "/", {"x-amz-target": "Nobody.Does", "content-type": JSON}),
}  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_a_body_without_end_is_refused_at_its_limit(wire: WholeWire, service: str) -> None:
    method, target, headers = SERVICES[service]
    path, _, query = target.partition("?")
    limit = SERVICE_PROTOCOLS[service].body_limit if service in SERVICE_PROTOCOLS else 1 << 20
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 65536
            yield b" " * 65536

    answer = wire.answer(
        Request(method=method, path=path, query=query, headers=headers, chunks=endless(), peer="127.0.0.1")
    )
    assert answer.status in (400, 413)
    assert taken <= limit + 2 * 65536


# On a real port


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server(tmp_path_factory.mktemp("served") / "home") as running:
        yield running


def _health_seconds(served: ServerProcess) -> float:
    started = time.monotonic()
    assert served.get("/_luthier/health")[0] == 200
    return time.monotonic() - started


def test_idle_and_slow_connections_keep_nobody_waiting(served: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 10)) for _ in range(200)]
        starts = (b"", b"GET /bucket/x HTTP/1.1\r\nHost: x\r\nX-Slow: ",
                  b"PUT /bucket/x HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\nab",
                  b"POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: SageMaker.ListModels\r\n"
                  b"Content-Length: 900\r\n\r\n{")  # fmt: skip
        for number, connection in enumerate(held):
            connection.sendall(starts[number % 4] if number < 120 else b"")
        for _ in range(3):
            for connection in held[:120:4]:
                with contextlib.suppress(OSError):
                    connection.sendall(b"G")
            assert _health_seconds(served) < 5
            assert served.client("sagemaker").list_models()["Models"] == []
    assert _health_seconds(served) < 5


def test_the_port_s_paths_stay_in_their_rooms(served: ServerProcess) -> None:
    """As sent, without a client that tidies them up."""
    for path in ("/_luthier/../../etc/passwd", "/_luthier/%2e%2e/%2e%2e/etc/passwd", "/..//..//etc/passwd",
                 "//etc/passwd",
                 "/%5c..%5cetc", "http://169.254.169.254/latest/", "*"):  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        connection.putrequest("GET", path, skip_host=False)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status in (400, 403, 404, 405), (path, body)
        assert b"root:x:0" not in body
        connection.close()
