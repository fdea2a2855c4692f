"""The supervisor as the server starts it: the real program, the real engine, the embedded object store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from supervisor.supervisor_harness import OWNER, ROLE
from supervisor.test_kill_storm import REAL, ROWS

from luthier.endpoint_connection import EndpointConnections
from luthier.jobs.progress import EndpointProgress, ServedVariant
from luthier.jobs.resource import Resource
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.jobspec import JobSpec
from luthier.launchers.local import find_processes
from luthier.objects.store import EmbeddedObjectStore
from luthier.service.supervisor_settings import MODULE, decode_settings, encode_settings, start_supervisor
from luthier.supervisor.loop import heartbeat_file


def test_settings_travel_whole(tmp_path: Path) -> None:
    settings = ServiceSettings(
        home=tmp_path, database="postgresql://user:secret@host/db", slots=("0+1", "cpu"), stop_seconds=3.5
    )
    assert decode_settings(tmp_path, encode_settings(settings)) == settings
    assert decode_settings(tmp_path, b"") == ServiceSettings(home=tmp_path)


@contextmanager
def started(settings: ServiceSettings) -> Iterator[subprocess.Popen[bytes]]:
    supervisor = start_supervisor(settings)
    try:
        yield supervisor
    finally:
        supervisor.kill()
        supervisor.wait()
        for process in find_processes(settings.home):
            process.kill()


def test_the_program_supervises_until_it_is_asked_to_leave(tmp_path: Path) -> None:
    settings = ServiceSettings(home=tmp_path)
    with started(settings) as supervisor:
        deadline = time.monotonic() + 30
        while not heartbeat_file(tmp_path).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert Path(f"/proc/{supervisor.pid}/cmdline").read_bytes().split(b"\0")[2:4] == [b"-m", MODULE.encode()]
        supervisor.terminate()
        assert supervisor.wait(20) == 0
    assert (tmp_path / "logs" / "supervisor.log").exists()


def order(store: Store, name: str) -> Resource:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/rows/"}}
    request = {
        "TrainingJobName": name, "RoleArn": ROLE, "OutputDataConfig": {"S3OutputPath": "s3://data/out"},
        "InputDataConfig": [{"ChannelName": "training", "DataSource": source}],
    }  # fmt: skip
    settings = {key: str(value) for key, value in REAL.items()}
    spec = JobSpec(
        model="luthier/tiny", channels={"training": "s3://data/rows/"}, hyperparameters=settings,
        max_seconds=3600, output=f"s3://data/out/{name}/output/",
    )  # fmt: skip
    return store.create("training-job", OWNER, name, request, secondary="Starting", spec=spec)


def weights(objects: EmbeddedObjectStore, name: str, folder: Path) -> bytes:
    folder.mkdir()
    objects.download_prefix(f"s3://data/out/{name}/output/model.tar.gz", folder)
    with tarfile.open(folder / "model.tar.gz") as tar:
        handle = tar.extractfile("adapter_model.safetensors")
        assert handle is not None
        return handle.read()


@pytest.mark.slow
def test_a_trained_model_is_served_until_its_endpoint_is_deleted(tmp_path: Path) -> None:
    settings = ServiceSettings(home=tmp_path / "home")
    store = Store.open(settings.database_url)
    objects = EmbeddedObjectStore(store.engine, settings.home / "objects")
    objects.create_bucket("data", *OWNER)
    objects.put("data", "rows/train.jsonl", ["".join(json.dumps(row) + "\n" for row in ROWS).encode()])
    job = order(store, "first")
    variant = ServedVariant(name="AllTraffic", model="m", artifact="s3://data/out/first/output/model.tar.gz")

    def status(resource: Resource) -> str:
        found = store.get(resource.id)
        return found.status if found else "gone"

    def wait(resource: Resource, wanted: str, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while status(resource) != wanted:
            assert time.monotonic() < deadline, store.get(resource.id)
            time.sleep(0.1)

    with started(settings):
        wait(job, "Completed")
        progress = EndpointProgress(variants=(variant,))
        endpoint = store.create("endpoint", OWNER, "chat", {"EndpointConfigName": "c"}, progress=progress)
        wait(endpoint, "InService")
        found = store.get(endpoint.id)
        assert found is not None
        body, headers = json.dumps({"inputs": "Say red"}), {"Content-Type": "application/json", "Connection": "close"}
        address, connections = found.endpoint.variants[0].address, EndpointConnections(120)
        response = connections.request(address, "POST", "/invocations", body.encode(), headers)
        assert (response.status, "generated_text" in response.read().decode()) == (200, True)
        store.update(endpoint.id, "Deleting")
        wait(endpoint, "gone")
        assert find_processes(settings.endpoints) == []
    objects.close()
    store.close()


@pytest.mark.slow  # in CI a real training is killed in training/test_resume.py, a supervisor over fake engines here
def test_a_real_training_that_was_struck_has_the_undisturbed_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of engine and supervisor in the middle of training."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = ServiceSettings(home=tmp_path / "home")
    store = Store.open(settings.database_url)
    objects = EmbeddedObjectStore(store.engine, settings.home / "objects")
    objects.create_bucket("data", *OWNER)
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    objects.put("data", "rows/train.jsonl", [rows.encode()])
    whole, struck = order(store, "whole"), order(store, "struck")
    folder = settings.jobs / struck.id

    def now(job: Resource) -> Resource:
        found = store.get(job.id)
        assert found is not None
        return found

    deadline = time.monotonic() + 300
    with started(settings) as supervisor:
        while not list((folder / "checkpoints").glob("step-*")):
            assert time.monotonic() < deadline, now(whole)
            time.sleep(0.01)
        for engine in find_processes(folder):
            engine.kill()
        os.kill(supervisor.pid, signal.SIGKILL)
    with started(settings):
        while not now(struck).ended:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    for job in (whole, struck):
        assert now(job).status == "Completed", now(job).training.failure
    assert "resuming after step" in (folder / "logs" / "engine.log").read_text()
    assert weights(objects, "struck", tmp_path / "a") == weights(objects, "whole", tmp_path / "b")
    metrics = {one["MetricName"] for one in now(struck).training.metrics}
    assert {"huggingface-textgeneration:eval-loss", "luthier:tuned:perplexity"} <= metrics
    progress = now(struck).training.step
    assert progress["CurrentEpoch"] == progress["MaxEpoch"]
    objects.close()
    store.close()
