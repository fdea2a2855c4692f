"""What a supervisor finds after another one's end, gentle or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.exc import OperationalError
from supervisor.workbench import Bench, bench

from luthier.jobs.states import ENDED
from luthier.jobs.store import Resource
from luthier.launchers.process import marked

RUN_SUPERVISOR = Path(__file__).with_name("run_supervisor.py")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def start(home: Bench, engine: str = "fake", **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(RUN_SUPERVISOR), str(home.settings.home), str(home.objects.root), engine]
    return subprocess.Popen(command, **options)


def wait(reached: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it was not reached in time"
        time.sleep(0.01)


def step_of(home: Bench, job: Resource) -> int:
    path = home.folder(job) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def test_engines_that_outlived_a_killed_supervisor_are_ended_and_go_on(home: Bench) -> None:
    whole, killed = home.order("whole", steps=12), home.order("killed", steps=12, hang_at=5, save_steps=100)
    with start(home) as supervisor:
        wait(lambda: step_of(home, killed) == 5)
        supervisor.kill()
    (engine,) = marked(home.folder(killed))
    assert home.now(killed).owner is not None
    home.supervisor.recover()
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert home.now(killed).owner is None
    assert list((home.folder(killed) / "checkpoints").iterdir()), "it was not asked before it was ended"
    settings = home.folder(killed) / "input/config/hyperparameters.json"
    settings.write_text(json.dumps({"steps": "12"}))
    home.finish(killed)
    assert home.weights(killed) == home.weights(whole)
    assert home.runs(killed) == 2


def test_asked_to_leave_a_supervisor_lets_engines_save_and_gives_jobs_back(home: Bench) -> None:
    job = home.order("long", steps=1000, step_seconds=0.02, save_steps=10_000)
    with start(home) as supervisor:
        wait(lambda: step_of(home, job) >= 3)
        supervisor.terminate()
        assert supervisor.wait(20) == 0
    assert marked(home.settings.home) == []
    left = home.now(job)
    assert (left.status, left.owner, left.lease, left.open) == ("InProgress", None, None, True)
    assert list((home.folder(job) / "checkpoints").iterdir())


def test_without_its_parent_a_supervisor_leaves(home: Bench) -> None:
    job = home.order("long", steps=1000, step_seconds=0.02)
    arguments = [str(RUN_SUPERVISOR), str(home.settings.home), str(home.objects.root), "fake"]
    program = f"import subprocess, sys; subprocess.run([sys.executable, *{arguments!r}])"
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        wait(lambda: step_of(home, job) >= 1)
        (supervisor,) = psutil.Process(parent.pid).children()
        parent.kill()
    psutil.wait_procs([supervisor], 20)
    assert not supervisor.is_running()
    assert marked(home.settings.home) == []
    assert home.now(job).owner is None


def test_a_second_supervisor_waits_for_the_first(home: Bench) -> None:
    with start(home) as first:
        wait(lambda: (home.settings.home / "supervisor.beat").exists())
        with start(home, stdout=subprocess.PIPE) as second:
            assert second.stdout is not None
            assert f"waiting for supervisor {first.pid}".encode() in second.stdout.readline()
            first.terminate()
            job = home.order("after")
            wait(lambda: home.now(job).ended)
            second.terminate()
        assert second.returncode == 0
    assert first.returncode == 0


def test_a_job_whose_model_is_uploaded_is_not_run_again(home: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = home.order("uploaded")
    update = home.store.update

    def refuse(resource_id: str, status: str | None = None, **rest: Any) -> Resource:
        if status in ENDED:
            raise OperationalError("UPDATE", {}, Exception("the disk of the database is full"))
        return update(resource_id, status, **rest)

    monkeypatch.setattr(home.store, "update", refuse)
    marks = home.folder(job) / "service.json"
    home.until(lambda: marks.exists() and json.loads(marks.read_text())["artifact"])
    for _ in range(5):
        home.supervisor.round()
    assert home.now(job).status == "InProgress"
    monkeypatch.undo()
    home.new_supervisor()
    home.supervisor.recover()
    (done,) = home.finish(job)
    assert done.status == "Completed"
    assert home.runs(job) == 1
    assert done.facts["metrics"]


def test_a_job_that_only_has_to_be_uploaded_does_not_wait_for_a_device(home: Bench) -> None:
    first, last = home.order("first", hang_at=1), home.order("last")
    folder = home.folder(last)
    folder.mkdir(parents=True)
    (folder / "service.json").write_text(json.dumps({"stage": "finish", "status": "Stopped", "secondary": "Stopped"}))
    home.supervisor.recover()
    home.finish(last)
    assert not home.now(first).ended


def test_what_the_engine_wrote_while_nobody_looked_is_in_the_events_once(home: Bench) -> None:
    job = home.order("seen", steps=30, step_seconds=0.03)
    with start(home) as supervisor:
        wait(lambda: step_of(home, job) >= 3)
        supervisor.kill()
    time.sleep(0.2)
    events = home.folder(job) / "logs" / "events.jsonl"
    with open(events, "a") as handle:
        handle.write('{"timestamp": 17, "mess')  # the kill came in the middle of a line
    home.supervisor.recover()
    home.finish(job)
    log = (home.folder(job) / "logs" / "engine.log").read_text().splitlines()
    seen = [json.loads(line)["message"] for line in events.read_text().splitlines()]
    assert [line for line in seen if not line.startswith("supervisor: ")] == log
    assert log[-1] == "done"


def test_a_process_whose_mark_cannot_be_seen_is_found_by_the_record(home: Bench) -> None:
    job = home.order("hidden")
    home.store.claim("another", ["training-job"], time.time() + 60)
    with subprocess.Popen(["sleep", "60"]) as hidden:
        folder = home.folder(job)
        folder.mkdir(parents=True)
        trace = {"pid": hidden.pid, "created": psutil.Process(hidden.pid).create_time()}
        (folder / "service.json").write_text(json.dumps({"stage": "train", "process": trace}))
        home.supervisor.recover()
        assert hidden.poll() is not None


def test_a_number_that_was_used_again_is_left_alone(home: Bench) -> None:
    job = home.order("reused")
    home.store.claim("another", ["training-job"], time.time() + 60)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        folder = home.folder(job)
        folder.mkdir(parents=True)
        trace = {"pid": stranger.pid, "created": psutil.Process(stranger.pid).create_time() - 100}
        (folder / "service.json").write_text(json.dumps({"stage": "train", "process": trace}))
        home.supervisor.recover()
        assert stranger.poll() is None
        os.kill(stranger.pid, signal.SIGKILL)


def test_a_database_that_is_away_for_a_while_stops_nothing(home: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = home.order("steady", steps=30, step_seconds=0.02)
    home.until(lambda: step_of(home, job) >= 2)
    fault = OperationalError("SELECT", {}, Exception("server closed the connection"))
    with monkeypatch.context() as away:
        away.setattr(home.store, "held", lambda owner, among: (_ for _ in ()).throw(fault))
        away.setattr("luthier.supervisor.loop.time.sleep", lambda seconds: None)
        for _ in range(3):
            home.supervisor.round()
    (done,) = home.finish(job)
    assert done.status == "Completed"
    assert home.runs(job) == 1


def test_folders_of_deleted_jobs_are_removed(home: Bench) -> None:
    job = home.order("kept")
    home.finish(job)
    orphan = home.settings.jobs / "0123456789abcdef"
    orphan.mkdir()
    home.supervisor.recover()
    assert not orphan.exists()
    assert home.folder(job).exists()
