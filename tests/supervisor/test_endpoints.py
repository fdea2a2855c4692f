"""Endpoints under the supervisor: from Creating to InService, through deaths, to their removal."""

from __future__ import annotations

import io
import os
import signal
import socket
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from supervisor.supervisor_harness import OWNER, Harness, supervisor_harness

from luthier.endpoint_connection import EndpointUnreachableError
from luthier.jobs.logs import ENDPOINTS, Logs, Window
from luthier.jobs.progress import EndpointProgress, ServedVariant
from luthier.jobs.resource import Resource
from luthier.launchers.local import find_processes
from luthier.supervisor import serving
from luthier.supervisor.serving import ping


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with supervisor_harness(tmp_path) as opened:
        yield opened


def put(harness: Harness, uri: str, files: Mapping[str, str]) -> str:
    path = harness.objects.path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return uri


def order(harness: Harness, *models: str, name: str = "chat") -> Resource:
    """What CreateEndpoint leaves in the store."""
    variants = tuple(
        ServedVariant(name=f"v{number}", model=f"m{number}", artifact=uri) for number, uri in enumerate(models)
    )
    request = {"EndpointName": name, "EndpointConfigName": name}
    return harness.store.create("endpoint", OWNER, name, request, progress=EndpointProgress(variants=variants))


def status(harness: Harness, endpoint: Resource) -> str:
    found = harness.store.get(endpoint.id)
    return found.status if found else "gone"


def reach(harness: Harness, endpoint: Resource, wanted: str) -> Resource | None:
    harness.run_until(lambda: status(harness, endpoint) == wanted)
    return harness.store.get(endpoint.id)


def test_the_logs_of_an_endpoint_are_bounded_and_lose_no_line(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LOG_BYTES", 20_000)
    monkeypatch.setattr(serving, "EVENT_BYTES", 400_000)
    count = 20_000  # 220 kB of lines, 1.4 MB of events
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"chatty": str(count)}))
    logs = harness.settings.endpoints / endpoint.id / "v0" / "logs"
    harness.run_until(lambda: (logs / "events.jsonl").exists() and f"line {count - 1}\"".encode() in
               (logs / "events.jsonl").read_bytes()[-2000:], 60)  # fmt: skip
    harness.run_until(lambda: (logs / "engine.log").stat().st_size <= 20_000)
    assert 400_000 <= (logs / "events.jsonl").stat().st_size <= 800_100
    found = Logs(harness.settings, harness.store)
    (stream,) = found.streams(OWNER, f"{ENDPOINTS}chat")
    said: list[str] = []
    page = found.events(stream, Window(), from_head=True)
    while page.events:
        said += [event.message for event in page.events]
        page = found.events(stream, Window(), page.forward)
    numbers = [int(line.split()[1]) for line in said if line.startswith("line ")]
    assert numbers == list(range(numbers[0], count))
    assert numbers[0] > 0
    assert any("was truncated" in line for line in said)
    assert all(line.startswith(("line ", "supervisor: ")) for line in said)


def test_an_endpoint_unpacks_its_model_and_answers(harness: Harness) -> None:
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}", "sub/x": "1"}))
    served = reach(harness, endpoint, "InService")
    assert served is not None
    assert served.endpoint.variants[0].address == served.endpoint.variants[0].address
    ping(served.endpoint.variants[0].address)
    folder = harness.settings.endpoints / endpoint.id / "v0"
    assert (folder / "model" / "sub" / "x").read_text() == "1"
    harness.run_until(lambda: (folder / "logs" / "events.jsonl").exists())
    assert "loading model" in (folder / "logs" / "events.jsonl").read_text()


def test_variants_have_a_process_each(harness: Harness) -> None:
    (harness.objects.path("s3://models/loose")).mkdir(parents=True)
    (harness.objects.path("s3://models/loose") / "config.json").write_text("{}")
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}"}), "s3://models/loose")
    served = reach(harness, endpoint, "InService")
    assert served is not None
    addresses = [variant.address for variant in served.endpoint.variants]
    assert len(set(addresses)) == 2
    for address in addresses:
        ping(address)


def test_a_base_model_is_served_by_name(harness: Harness) -> None:
    uri = "s3://jumpstart-cache-prod-us-east-1/luthier/huggingface-text2text-flan-t5-small/1.0.0/infer/"
    endpoint = order(harness, uri)
    reach(harness, endpoint, "InService")
    (process,) = find_processes(harness.settings.endpoints)
    assert "flan-t5-small" in process.cmdline()


def test_a_deleted_endpoint_leaves_nothing(harness: Harness) -> None:
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}"}))
    reach(harness, endpoint, "InService")
    harness.store.update(endpoint.id, "Deleting")
    reach(harness, endpoint, "gone")
    assert find_processes(harness.settings.endpoints) == []
    assert not (harness.settings.endpoints / endpoint.id).exists()


def test_a_process_that_dies_is_started_again(harness: Harness) -> None:
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}"}))
    reach(harness, endpoint, "InService")
    (process,) = find_processes(harness.settings.endpoints)
    os.kill(process.pid, signal.SIGKILL)
    reach(harness, endpoint, "SystemUpdating")
    served = reach(harness, endpoint, "InService")
    assert served is not None
    ping(served.endpoint.variants[0].address)


@pytest.mark.parametrize(("told", "starts"), [("refuse", 1), ("die", 2)])
def test_a_model_that_cannot_be_served_fails_with_the_last_line(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, told: str, starts: int
) -> None:
    monkeypatch.setattr(serving, "MAX_CRASHES", 2)
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {told: ""}))
    failed = reach(harness, endpoint, "Failed")
    assert failed is not None
    assert failed.endpoint.failure.endswith(f"the last line of its log: luthier: error: told to {told}")
    pids = (harness.settings.endpoints / endpoint.id / "v0" / "pids").read_text().split()
    assert len(pids) == starts
    harness.store.update(endpoint.id, "Deleting")
    reach(harness, endpoint, "gone")


def evil(name: str, kind: bytes, target: str = "") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)
    return packed.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        evil("../../outside", tarfile.REGTYPE),
        evil("link", tarfile.SYMTYPE, "/etc/passwd"),
        evil("link", tarfile.SYMTYPE, "config.json"),
        evil("link", tarfile.LNKTYPE, "../../../luthier.sqlite"),
        evil("fifo", tarfile.FIFOTYPE),
        evil("device", tarfile.CHRTYPE),
        evil("whole", tarfile.REGTYPE)[:-20],
    ],
    ids=["text", "outside", "link out", "link in", "hard link", "fifo", "device", "torn"],
)
def test_an_archive_that_is_no_model_is_refused_and_writes_nothing(harness: Harness, content: bytes) -> None:
    path = harness.objects.path("s3://models/evil/model.tar.gz")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    endpoint = order(harness, "s3://models/evil/model.tar.gz")
    failed = reach(harness, endpoint, "Failed")
    assert failed is not None
    assert "not a sound model archive" in failed.endpoint.failure
    left = [path for path in (harness.settings.endpoints / endpoint.id).rglob("*") if path.is_file()]
    assert left == []


def test_a_model_that_is_not_there_fails_in_words(harness: Harness) -> None:
    failed = reach(harness, order(harness, "s3://models/none/model.tar.gz"), "Failed")
    assert failed is not None
    assert failed.endpoint.failure == "ClientError: s3://models/none/model.tar.gz: no objects found"


def test_a_new_supervisor_serves_again(harness: Harness) -> None:
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}"}))
    reach(harness, endpoint, "InService")
    (before,) = find_processes(harness.settings.endpoints)
    abandoned = harness.supervisor
    harness.new_supervisor()  # the one before is as good as killed
    harness.supervisor.recover()
    assert not before.is_running() or before.status() == psutil.STATUS_ZOMBIE
    assert all(work.is_stopped() for work in abandoned._works.values())
    reach(harness, endpoint, "SystemUpdating")
    reach(harness, endpoint, "InService")


def test_a_long_home_has_its_sockets_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.launchers.local.tempfile.gettempdir", lambda: "/tmp")
    with supervisor_harness(tmp_path / ("x" * 100)) as harness:
        harness.new_supervisor()
        endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}"}))
        served = reach(harness, endpoint, "InService")
        assert served is not None
        address = served.endpoint.variants[0].address
        assert len(address) <= 100
        assert Path(address).parent.stat().st_mode & 0o077 == 0
        harness.store.update(endpoint.id, "Deleting")
        reach(harness, endpoint, "gone")
        assert not Path(address).exists()


def test_ping_is_an_error_until_it_is_answered(tmp_path: Path) -> None:
    with pytest.raises(EndpointUnreachableError, match="FileNotFoundError"):
        ping(str(tmp_path / "none"))
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(tmp_path / "closed"))
        with pytest.raises(EndpointUnreachableError, match="ConnectionRefusedError"):
            ping(str(tmp_path / "closed"))


def test_the_settings_name_the_device(tmp_path: Path) -> None:
    with supervisor_harness(tmp_path) as harness:
        harness.settings = replace(harness.settings, serving_device="1")
        harness.new_supervisor()
        endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}"}))
        reach(harness, endpoint, "InService")
        (process,) = find_processes(harness.settings.endpoints)
        assert process.cmdline()[-2:] == ["--device", "cuda"]
        assert process.environ()["CUDA_VISIBLE_DEVICES"] == "1"
