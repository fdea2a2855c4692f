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
from supervisor.supervisor_harness import Harness, supervisor_harness

from luthier.jobs.resource import Resource
from luthier.jobs.states import ENDED
from luthier.launchers.local import find_processes
from luthier.supervisor.folder import read_state

RUN_SUPERVISOR = Path(__file__).with_name("run_supervisor.py")


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with supervisor_harness(tmp_path) as opened:
        yield opened


def start(harness: Harness, engine: str = "fake", **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(RUN_SUPERVISOR), str(harness.settings.home), str(harness.objects.root), engine]
    return subprocess.Popen(command, **options)


def wait(reached: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it was not reached in time"
        time.sleep(0.01)


def step_of(harness: Harness, job: Resource) -> int:
    path = harness.folder(job) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def test_engines_that_outlived_a_killed_supervisor_are_ended_and_go_on(harness: Harness) -> None:
    whole, killed = (
        harness.create_job("whole", steps=12),
        harness.create_job("killed", steps=12, hang_at=5, save_steps=100),
    )
    with start(harness) as supervisor:
        wait(lambda: step_of(harness, killed) == 5)
        supervisor.kill()
    (engine,) = find_processes(harness.folder(killed))
    assert harness.reload(killed).owner is not None
    harness.supervisor.recover()
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert harness.reload(killed).owner is None
    assert list((harness.folder(killed) / "checkpoints").iterdir()), "it was not asked before it was ended"
    settings = harness.folder(killed) / "input/config/hyperparameters.json"
    settings.write_text(json.dumps({"steps": "12"}))
    harness.run_to_end(killed)
    assert harness.weights(killed) == harness.weights(whole)
    assert harness.run_count(killed) == 2


def test_asked_to_leave_a_supervisor_lets_engines_save_and_gives_jobs_back(harness: Harness) -> None:
    job = harness.create_job("long", steps=1000, step_seconds=0.02, save_steps=10_000)
    with start(harness) as supervisor:
        wait(lambda: step_of(harness, job) >= 3)
        supervisor.terminate()
        assert supervisor.wait(20) == 0
    assert find_processes(harness.settings.home) == []
    left = harness.reload(job)
    assert (left.status, left.owner, left.lease, left.open) == ("InProgress", None, None, True)
    assert list((harness.folder(job) / "checkpoints").iterdir())


def test_without_its_parent_a_supervisor_leaves(harness: Harness) -> None:
    job = harness.create_job("long", steps=1000, step_seconds=0.02)
    arguments = [str(RUN_SUPERVISOR), str(harness.settings.home), str(harness.objects.root), "fake"]
    program = f"import subprocess, sys; subprocess.run([sys.executable, *{arguments!r}])"
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        wait(lambda: step_of(harness, job) >= 1)
        (supervisor,) = psutil.Process(parent.pid).children()
        parent.kill()
    psutil.wait_procs([supervisor], 20)
    assert not supervisor.is_running()
    assert find_processes(harness.settings.home) == []
    assert harness.reload(job).owner is None


def test_a_second_supervisor_waits_for_the_first(harness: Harness) -> None:
    with start(harness) as first:
        wait(lambda: (harness.settings.home / "supervisor.beat").exists())
        with start(harness, stdout=subprocess.PIPE) as second:
            assert second.stdout is not None
            assert f"waiting for supervisor {first.pid}".encode() in second.stdout.readline()
            first.terminate()
            job = harness.create_job("after")
            wait(lambda: harness.reload(job).ended)
            second.terminate()
        assert second.returncode == 0
    assert first.returncode == 0


def test_a_job_whose_model_is_uploaded_is_not_run_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    job = harness.create_job("uploaded")
    update = harness.store.update

    def refuse(resource_id: str, status: str | None = None, **rest: Any) -> Resource:
        if status in ENDED:
            raise OperationalError("UPDATE", {}, Exception("the disk of the database is full"))
        return update(resource_id, status, **rest)

    monkeypatch.setattr(harness.store, "update", refuse)
    marks = harness.folder(job) / "service.json"
    harness.run_until(lambda: marks.exists() and json.loads(marks.read_text())["artifact"])
    for _ in range(5):
        harness.supervisor.round()
    assert harness.reload(job).status == "InProgress"
    monkeypatch.undo()
    harness.new_supervisor()
    harness.supervisor.recover()
    (done,) = harness.run_to_end(job)
    assert done.status == "Completed"
    assert harness.run_count(job) == 1
    assert done.training.metrics


def test_a_job_that_only_has_to_be_uploaded_does_not_wait_for_a_device(harness: Harness) -> None:
    first, last = harness.create_job("first", hang_at=1), harness.create_job("last")
    folder = harness.folder(last)
    folder.mkdir(parents=True)
    (folder / "service.json").write_text(json.dumps({"stage": "finish", "status": "Stopped", "secondary": "Stopped"}))
    harness.supervisor.recover()
    harness.run_to_end(last)
    assert not harness.reload(first).ended


def test_what_the_engine_wrote_while_nobody_looked_is_in_the_events_once(harness: Harness) -> None:
    job = harness.create_job("seen", steps=30, step_seconds=0.03)
    with start(harness) as supervisor:
        wait(lambda: step_of(harness, job) >= 3)
        supervisor.kill()
    time.sleep(0.2)
    events = harness.folder(job) / "logs" / "events.jsonl"
    with open(events, "a") as handle:
        handle.write('{"timestamp": 17, "mess')  # the kill came in the middle of a line
    harness.supervisor.recover()
    harness.run_to_end(job)
    log = (harness.folder(job) / "logs" / "engine.log").read_text().splitlines()
    seen = [json.loads(line)["message"] for line in events.read_text().splitlines()]
    assert [line for line in seen if not line.startswith("supervisor: ")] == log
    assert log[-1] == "done"


def test_a_process_whose_mark_cannot_be_seen_is_found_by_the_record(harness: Harness) -> None:
    job = harness.create_job("hidden")
    harness.store.claim("another", ["training-job"], time.time() + 60)
    with subprocess.Popen(["sleep", "60"]) as hidden:
        folder = harness.folder(job)
        folder.mkdir(parents=True)
        trace = {"pid": hidden.pid, "created": psutil.Process(hidden.pid).create_time()}
        (folder / "service.json").write_text(json.dumps({"stage": "train", "process": trace}))
        harness.supervisor.recover()
        assert hidden.poll() is not None


def test_a_number_that_was_used_again_is_left_alone(harness: Harness) -> None:
    job = harness.create_job("reused")
    harness.store.claim("another", ["training-job"], time.time() + 60)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        folder = harness.folder(job)
        folder.mkdir(parents=True)
        trace = {"pid": stranger.pid, "created": psutil.Process(stranger.pid).create_time() - 100}
        (folder / "service.json").write_text(json.dumps({"stage": "train", "process": trace}))
        harness.supervisor.recover()
        assert stranger.poll() is None
        os.kill(stranger.pid, signal.SIGKILL)


def test_a_database_that_is_away_for_a_while_stops_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    job = harness.create_job("steady", steps=30, step_seconds=0.02)
    harness.run_until(lambda: step_of(harness, job) >= 2)
    fault = OperationalError("SELECT", {}, Exception("server closed the connection"))
    with monkeypatch.context() as away:
        away.setattr(harness.store, "held", lambda owner, among: (_ for _ in ()).throw(fault))
        away.setattr("luthier.supervisor.loop.time.sleep", lambda seconds: None)
        for _ in range(3):
            harness.supervisor.round()
    (done,) = harness.run_to_end(job)
    assert done.status == "Completed"
    assert harness.run_count(job) == 1


def test_folders_of_deleted_jobs_are_removed(harness: Harness) -> None:
    job = harness.create_job("kept")
    harness.run_to_end(job)
    orphan = harness.settings.jobs / "0123456789abcdef"
    orphan.mkdir()
    harness.supervisor.recover()
    assert not orphan.exists()
    assert harness.folder(job).exists()


def test_the_state_of_a_job_begun_by_0_3_is_understood(tmp_path: Path) -> None:
    written = {
        "stage": "train", "process": {"pid": 7, "created": 1.5}, "ending": "runtime", "deaths": 2, "progress": 30,
        "seconds": 4.5, "artifact": "", "status": "", "secondary": "", "failure": "", "format_version": 1,
    }  # fmt: skip
    (tmp_path / "service.json").write_text(json.dumps(written))
    state = read_state(tmp_path)
    assert (state.stage, state.handle, state.stop_reason) == ("train", {"pid": 7, "created": 1.5}, "max_runtime")
    assert (state.crashes, state.progress, state.seconds, state.format_version) == (2, 30, 4.5, 2)
