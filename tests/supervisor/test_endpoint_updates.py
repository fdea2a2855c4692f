"""UpdateEndpoint under the supervisor: the old processes answer until the new ones are ready, or for good."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.test_endpoints import FAKE_SERVER, order, put, reach
from supervisor.workbench import Bench, bench

from luthier.jobs.logs import Logs
from luthier.jobs.store import Resource
from luthier.launchers.process import marked
from luthier.supervisor import endpoints
from luthier.supervisor.serving import ping


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(endpoints, "LINGER", 0.05)
    with bench(tmp_path) as made:
        made.new_supervisor(serving=FAKE_SERVER)
        yield made


@pytest.fixture
def served(home: Bench) -> Resource:
    """An endpoint in service."""
    endpoint = order(home, put(home, "s3://models/a/model.tar.gz", {"config.json": "{}"}))
    found = reach(home, endpoint, "InService")
    assert found is not None
    return found


def update(home: Bench, endpoint: Resource, uri: str, number: int = 1) -> None:
    """What UpdateEndpoint leaves in the store."""
    variant = {**endpoint.facts["variants"][0], "ModelData": uri, "Folder": f"v0.{number}"}
    del variant["address"]
    pending = {"number": number, "EndpointConfigName": f"new-{number}", "started": time.time(), "variants": [variant]}
    home.store.update(endpoint.id, "Updating", facts={"pending": pending, "updates": number, "failure": None})


def models(home: Bench) -> list[str]:
    """The models that are being served, by their folders' names."""
    return sorted(Path(process.cwd()).name for process in marked(home.settings.endpoints))


def restart(home: Bench) -> None:
    """The supervisor is killed, and another one started."""
    abandoned = home.supervisor
    home.new_supervisor(serving=FAKE_SERVER)
    home.supervisor.recover()
    assert all(work.gone() for work in abandoned._works.values())


def test_the_new_model_takes_over_and_the_old_one_goes(home: Bench, served: Resource) -> None:
    update(home, served, put(home, "s3://models/b/model.tar.gz", {"config.json": "{}", "b": "1"}))
    home.supervisor.round()
    now = home.now(served)
    assert (now.status, now.facts["address"]) == ("Updating", served.facts["address"])
    ping(served.facts["address"])
    done = reach(home, served, "InService")
    assert done is not None
    assert done.request["EndpointConfigName"] == "new-1"
    assert (done.facts["pending"], done.facts["failure"]) == (None, None)
    assert done.facts["address"] == done.facts["variants"][0]["address"] != served.facts["address"]
    ping(done.facts["address"])
    home.until(lambda: models(home) == ["v0.1"])
    folder = home.settings.endpoints / served.id
    home.until(lambda: not (folder / "v0").exists())
    assert (folder / "v0.1" / "model" / "b").read_text() == "1"
    home.until(lambda: (folder / "v0.1" / "logs" / "events.jsonl").exists())
    (stream,) = Logs(home.settings, home.store).streams(("123456789012", "us-east-1"), "/aws/sagemaker/Endpoints/chat")
    assert stream.name == f"v0/i-{served.id[:16]}1"
    update(home, done, put(home, "s3://models/c/model.tar.gz", {"config.json": "{}"}), 2)
    reach(home, served, "InService")
    home.until(lambda: models(home) == ["v0.2"])
    home.store.update(served.id, "Deleting")
    reach(home, served, "gone")
    assert (models(home), folder.exists()) == ([], False)


@pytest.mark.parametrize(
    ("files", "words"),
    [({"refuse": ""}, "told to refuse"), (None, "s3://models/none/model.tar.gz: no objects are there")],
)
def test_a_model_that_cannot_be_had_leaves_the_old_one_as_it_is(
    home: Bench, served: Resource, files: dict[str, str] | None, words: str
) -> None:
    uri = "s3://models/none/model.tar.gz" if files is None else put(home, "s3://models/b/model.tar.gz", files)
    update(home, served, uri)
    now = reach(home, served, "InService")
    assert now is not None
    assert now.facts["failure"].startswith("The update to endpoint config new-1 failed: ")
    assert words in now.facts["failure"]
    assert (now.request["EndpointConfigName"], now.facts["pending"]) == ("chat", None)
    assert now.facts["address"] == served.facts["address"]
    ping(served.facts["address"])
    assert models(home) == ["v0"]
    assert not (home.settings.endpoints / served.id / "v0.1").exists()
    update(home, now, put(home, "s3://models/c/model.tar.gz", {"config.json": "{}"}), 2)
    again = reach(home, served, "InService")
    assert again is not None
    assert again.facts["failure"] is None


def test_an_update_goes_on_after_the_supervisor_was_killed(home: Bench, served: Resource) -> None:
    slow = put(home, "s3://models/b/model.tar.gz", {"slow": "", "config.json": "{}"})
    update(home, served, slow)
    home.until(lambda: models(home) == ["v0", "v0.1"])
    restart(home)
    home.until(lambda: models(home) == ["v0", "v0.1"])
    ping_when_up(home, served)
    assert home.now(served).status == "Updating"
    (home.settings.endpoints / served.id / "v0.1" / "model" / "slow").unlink()
    done = reach(home, served, "InService")
    assert done is not None
    assert done.request["EndpointConfigName"] == "new-1"
    home.until(lambda: models(home) == ["v0.1"])


def ping_when_up(home: Bench, endpoint: Resource) -> None:
    def answers() -> bool:
        try:
            ping(endpoint.facts["address"])
        except OSError:
            return False
        return True

    home.until(answers)


def test_what_a_killed_supervisor_left_of_replaced_variants_is_removed(home: Bench, served: Resource) -> None:
    left: Any = home.settings.endpoints / served.id / "v0.7" / "model"
    left.mkdir(parents=True)
    restart(home)
    reach(home, served, "SystemUpdating")
    assert not left.parent.exists()
    reach(home, served, "InService")


def test_an_endpoint_that_is_deleted_during_an_update_leaves_nothing(home: Bench, served: Resource) -> None:
    update(home, served, put(home, "s3://models/b/model.tar.gz", {"slow": "", "config.json": "{}"}))
    home.until(lambda: models(home) == ["v0", "v0.1"])
    home.store.update(served.id, "Deleting")
    reach(home, served, "gone")
    assert models(home) == []
    assert not (home.settings.endpoints / served.id).exists()


def test_without_an_old_one_that_answers_a_failed_update_fails_the_endpoint(home: Bench, served: Resource) -> None:
    update(home, served, put(home, "s3://models/b/model.tar.gz", {"slow": "", "config.json": "{}"}))
    home.until(lambda: models(home) == ["v0", "v0.1"])
    work: Any = home.supervisor._works[served.id]
    work._variants[0].kill()
    work._variants[0].state, work._variants[0].failure = "failed", "it died four times"
    home.supervisor.round()
    assert home.now(served).status == "Updating"
    work._next[0].state, work._next[0].failure = "failed", "neither does this"
    failed = reach(home, served, "Failed")
    assert failed is not None
    assert failed.facts["failure"] == "it died four times"
