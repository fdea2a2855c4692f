"""UpdateEndpoint under the supervisor: the old processes answer until the new ones are ready, or for good."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from supervisor.supervisor_harness import Harness, supervisor_harness
from supervisor.test_endpoints import order, put, reach

from luthier.endpoint_connection import EndpointUnreachableError
from luthier.jobs.logs import Logs
from luthier.jobs.progress import PendingUpdate
from luthier.jobs.resource import Resource
from luthier.launchers.local import find_processes
from luthier.supervisor import endpoints
from luthier.supervisor.serving import ping


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    monkeypatch.setattr(endpoints, "LINGER", 0.05)
    with supervisor_harness(tmp_path) as opened:
        yield opened


@pytest.fixture
def served(harness: Harness) -> Resource:
    """An endpoint in service."""
    endpoint = order(harness, put(harness, "s3://models/a/model.tar.gz", {"config.json": "{}"}))
    found = reach(harness, endpoint, "InService")
    assert found is not None
    return found


def update(harness: Harness, endpoint: Resource, uri: str, number: int = 1) -> None:
    """What UpdateEndpoint leaves in the store."""
    variant = replace(endpoint.endpoint.variants[0], artifact=uri, folder=f"v0.{number}", address="")
    pending = PendingUpdate(number=number, config=f"new-{number}", started=time.time(), variants=(variant,))
    harness.store.update(endpoint.id, "Updating", progress={"pending": pending, "updates": number, "failure": ""})


def models(harness: Harness) -> list[str]:
    """The models that are being served, by their folders' names."""
    return sorted(Path(process.cwd()).name for process in find_processes(harness.settings.endpoints))


def restart(harness: Harness) -> None:
    """The supervisor is killed, and another one started."""
    abandoned = harness.supervisor
    harness.new_supervisor()
    harness.supervisor.recover()
    assert all(work.is_stopped() for work in abandoned._works.values())


def test_the_new_model_takes_over_and_the_old_one_goes(harness: Harness, served: Resource) -> None:
    update(harness, served, put(harness, "s3://models/b/model.tar.gz", {"config.json": "{}", "b": "1"}))
    harness.supervisor.round()
    now = harness.reload(served)
    assert (now.status, now.endpoint.variants[0].address) == ("Updating", served.endpoint.variants[0].address)
    ping(served.endpoint.variants[0].address)
    done = reach(harness, served, "InService")
    assert done is not None
    assert done.request["EndpointConfigName"] == "new-1"
    assert (done.endpoint.pending, done.endpoint.failure) == (None, "")
    assert done.endpoint.variants[0].address == done.endpoint.variants[0].address != served.endpoint.variants[0].address
    ping(done.endpoint.variants[0].address)
    harness.run_until(lambda: models(harness) == ["v0.1"])
    folder = harness.settings.endpoints / served.id
    harness.run_until(lambda: not (folder / "v0").exists())
    assert (folder / "v0.1" / "model" / "b").read_text() == "1"
    harness.run_until(lambda: (folder / "v0.1" / "logs" / "events.jsonl").exists())
    (stream,) = Logs(harness.settings, harness.store).streams(
        ("123456789012", "us-east-1"), "/aws/sagemaker/Endpoints/chat"
    )
    assert stream.name == f"v0/i-{served.id[:16]}1"
    update(harness, done, put(harness, "s3://models/c/model.tar.gz", {"config.json": "{}"}), 2)
    reach(harness, served, "InService")
    harness.run_until(lambda: models(harness) == ["v0.2"])
    harness.store.update(served.id, "Deleting")
    reach(harness, served, "gone")
    assert (models(harness), folder.exists()) == ([], False)


@pytest.mark.parametrize(
    ("files", "words"),
    [({"refuse": ""}, "told to refuse"), (None, "s3://models/none/model.tar.gz: no objects found")],
)
def test_a_model_that_cannot_be_had_leaves_the_old_one_as_it_is(
    harness: Harness, served: Resource, files: dict[str, str] | None, words: str
) -> None:
    uri = "s3://models/none/model.tar.gz" if files is None else put(harness, "s3://models/b/model.tar.gz", files)
    update(harness, served, uri)
    now = reach(harness, served, "InService")
    assert now is not None
    assert now.endpoint.failure.startswith("The update to endpoint config new-1 failed: ")
    assert words in now.endpoint.failure
    assert (now.request["EndpointConfigName"], now.endpoint.pending) == ("chat", None)
    assert now.endpoint.variants[0].address == served.endpoint.variants[0].address
    ping(served.endpoint.variants[0].address)
    assert models(harness) == ["v0"]
    assert not (harness.settings.endpoints / served.id / "v0.1").exists()
    update(harness, now, put(harness, "s3://models/c/model.tar.gz", {"config.json": "{}"}), 2)
    again = reach(harness, served, "InService")
    assert again is not None
    assert again.endpoint.failure == ""


def test_an_update_goes_on_after_the_supervisor_was_killed(harness: Harness, served: Resource) -> None:
    slow = put(harness, "s3://models/b/model.tar.gz", {"slow": "", "config.json": "{}"})
    update(harness, served, slow)
    harness.run_until(lambda: models(harness) == ["v0", "v0.1"])
    restart(harness)
    harness.run_until(lambda: models(harness) == ["v0", "v0.1"])
    ping_when_up(harness, served)
    assert harness.reload(served).status == "Updating"
    (harness.settings.endpoints / served.id / "v0.1" / "model" / "slow").unlink()
    done = reach(harness, served, "InService")
    assert done is not None
    assert done.request["EndpointConfigName"] == "new-1"
    harness.run_until(lambda: models(harness) == ["v0.1"])


def ping_when_up(harness: Harness, endpoint: Resource) -> None:
    def answers() -> bool:
        try:
            ping(endpoint.endpoint.variants[0].address)
        except EndpointUnreachableError:
            return False
        return True

    harness.run_until(answers)


def test_what_a_killed_supervisor_left_of_replaced_variants_is_removed(harness: Harness, served: Resource) -> None:
    left: Any = harness.settings.endpoints / served.id / "v0.7" / "model"
    left.mkdir(parents=True)
    restart(harness)
    reach(harness, served, "SystemUpdating")
    assert not left.parent.exists()
    reach(harness, served, "InService")


def test_an_endpoint_that_is_deleted_during_an_update_leaves_nothing(harness: Harness, served: Resource) -> None:
    update(harness, served, put(harness, "s3://models/b/model.tar.gz", {"slow": "", "config.json": "{}"}))
    harness.run_until(lambda: models(harness) == ["v0", "v0.1"])
    harness.store.update(served.id, "Deleting")
    reach(harness, served, "gone")
    assert models(harness) == []
    assert not (harness.settings.endpoints / served.id).exists()


def test_without_an_old_one_that_answers_a_failed_update_fails_the_endpoint(harness: Harness, served: Resource) -> None:
    update(harness, served, put(harness, "s3://models/b/model.tar.gz", {"slow": "", "config.json": "{}"}))
    harness.run_until(lambda: models(harness) == ["v0", "v0.1"])
    work: Any = harness.supervisor._works[served.id]
    work._variants[0].kill()
    work._variants[0].state, work._variants[0].failure = "failed", "it died four times"
    harness.supervisor.round()
    assert harness.reload(served).status == "Updating"
    work._next[0].state, work._next[0].failure = "failed", "neither does this"
    failed = reach(harness, served, "Failed")
    assert failed is not None
    assert failed.endpoint.failure == "it died four times"
