"""An S3 elsewhere that fails: it is given time, and what it does is not called the user's fault."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_wire import KEY, SECRET
from objects.live_objects import LiveObjects, live_objects
from supervisor.failing_port import FailingPort, failing_port
from supervisor.supervisor_harness import Harness, supervisor_harness
from supervisor.test_endpoints import order, status

from luthier.errors import ObjectStoreUnreachableError, UserError
from luthier.objects.remote_store import RemoteObjectStore
from luthier.supervisor import retry
from luthier.supervisor.retry import RetryPolicy

ROWS = b'{"instruction": "a", "context": "", "response": "b"}\n'
PASSING = ["reset", "break off", "SlowDown", "InternalError"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveObjects]:
    root = tmp_path_factory.mktemp("store")
    with live_objects(f"sqlite:///{root / 'elsewhere.sqlite'}", root) as running:
        for bucket in ("data", "results", "models"):
            running.objects.create_bucket(bucket, "123456789012", "us-east-1")
        client = running.client()
        client.put_object(Bucket="data", Key="rows/train.jsonl", Body=ROWS)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.addfile(tarfile.TarInfo("config.json"))
        client.put_object(Bucket="models", Key="a/model.tar.gz", Body=packed.getvalue())
        yield running


@pytest.fixture
def port(store: LiveObjects, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingPort]:
    """The store's port, by a way that fails; boto3 tries each request once, so that every failure is seen."""
    for name, value in {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
                        "AWS_MAX_ATTEMPTS": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "MAX_WAIT", 0.05)
    with failing_port(store.wire.port) as opened:
        yield opened


@pytest.fixture
def harness(port: FailingPort, tmp_path: Path) -> Iterator[Harness]:
    with supervisor_harness(tmp_path) as opened:
        given: Any = RemoteObjectStore(port.url)
        opened.objects = given
        opened.new_supervisor()
        yield opened


def log(harness: Harness, job: Any) -> str:
    return (harness.folder(job) / "logs" / "events.jsonl").read_text()


@pytest.mark.parametrize("how", PASSING)
def test_a_download_that_fails_for_a_while(harness: Harness, port: FailingPort, how: str) -> None:
    port.fail(how, 4)
    job = harness.create_job("patient", steps=1)
    (done,) = harness.run_to_end(job)
    assert (done.status, done.training.failure) == ("Completed", "")
    assert port.failed == 4
    assert f"the object store {port.url} fails: " in log(harness, job)


@pytest.mark.parametrize("how", ["reset", "SlowDown"])
def test_an_upload_that_fails_for_a_while(harness: Harness, port: FailingPort, store: LiveObjects, how: str) -> None:
    job = harness.create_job(f"uploading-{how.lower()}", steps=2, step_seconds=0.3)
    harness.run_until(lambda: harness.run_count(job) > 0)
    port.fail(how, 3)
    (done,) = harness.run_to_end(job)
    assert done.status == "Completed"
    assert port.failed == 3
    assert store.objects.exists(f"s3://results/out/{job.name}/output/model.tar.gz")


@pytest.mark.parametrize("how", ["reset", "SlowDown"])
def test_a_store_that_does_not_come_back(
    harness: Harness, port: FailingPort, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "UNREACHABLE_SECONDS", 3.0)
    port.fail(how, 10_000)
    (done,) = harness.run_to_end(harness.create_job("given-up"))
    assert done.status == "Failed"
    reason = done.training.failure
    assert reason.startswith(f"InternalServerError: the object store {port.url} fails: s3://data/rows: ")
    assert "it was tried" in reason
    assert port.failed > 2


def test_a_port_where_nothing_listens(tmp_path: Path, port: FailingPort) -> None:
    port.close()
    with pytest.raises(ObjectStoreUnreachableError, match=f"the object store {port.url} fails"):
        RemoteObjectStore(port.url).download_prefix("s3://data/rows", tmp_path)


def test_a_refusal_is_not_tried_again(harness: Harness, port: FailingPort) -> None:
    port.fail("AccessDenied", 10_000)
    (done,) = harness.run_to_end(harness.create_job("refused"))
    assert done.status == "Failed"
    said = "ClientError: Data download failed for channel 'training': s3://data/rows: "
    assert done.training.failure.startswith(said)
    assert port.failed == 1


def test_an_upload_that_is_refused_is_the_users(port: FailingPort, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    external = RemoteObjectStore(port.url)
    port.fail("AccessDenied", 1)
    with pytest.raises(UserError, match="AccessDenied"):
        external.upload_file(tmp_path / "file", "s3://results/file")
    port.fail("SlowDown", 1)
    with pytest.raises(ObjectStoreUnreachableError, match="SlowDown"):
        external.upload_file(tmp_path / "file", "s3://results/file")


def test_the_model_of_an_endpoint_is_fetched_again(harness: Harness, port: FailingPort) -> None:
    port.fail("SlowDown", 3)
    endpoint = order(harness, "s3://models/a/model.tar.gz")
    harness.run_until(lambda: status(harness, endpoint) in ("InService", "Failed"))
    assert status(harness, endpoint) == "InService"
    assert port.failed == 3


def test_waits_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("luthier.supervisor.retry.time.monotonic", lambda: now)
    policy, waits = RetryPolicy(), []
    while policy.should_retry(ObjectStoreUnreachableError("gone")):
        begun = now
        while policy.is_waiting:
            now += 0.5
        waits.append(now - begun)
    assert waits[:6] == [1, 2, 4, 8, 16, 30]
    assert 600 <= now - 1000 < 640
    assert (
        str(policy.final_error(ObjectStoreUnreachableError("gone")))
        == f"gone; it was tried {len(waits) + 1} times in 601 seconds"
    )
    policy.reset()
    assert policy.should_retry(ObjectStoreUnreachableError("gone"))
    assert not policy.should_retry(UserError("wrong"))
    assert str(policy.final_error(UserError("wrong"))) == "wrong"
