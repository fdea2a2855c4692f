"""kill -9 of supervisor and engine at seeded moments: nothing is lost, nothing runs twice, the weights are the same."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from supervisor.supervisor_harness import Harness, supervisor_harness

from luthier.jobs.resource import Resource
from luthier.launchers.local import find_processes

RUN_SUPERVISOR = Path(__file__).with_name("run_supervisor.py")
VICTIMS = ("supervisor", "engine", "both")
ROWS = [
    {"instruction": f"Say {word}", "context": "", "response": f"{word} it is"}
    for word in ("red", "blue", "green", "white", "black", "pink", "brown", "grey", "gold", "teal", "lime", "plum")
]
FAKE: dict[str, Any] = {"steps": 60, "step_seconds": 0.02, "save_steps": 3}
REAL: dict[str, Any] = {"max_steps": 12, "instruction_tuned": "True", "evaluation_strategy": "steps", "eval_steps": 4,
                        "save_steps": 2, "save_strategy": "steps", "logging_steps": 1,
                        "seed": 3}  # fmt: skip


class Storm:
    """A supervisor as a process on a home of its own, with somebody who kills it and its engines."""

    def __init__(self, harness: Harness, engine: str, seed: int) -> None:
        self.harness, self.engine = harness, engine
        self.draw = random.Random(seed)
        self.supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(RUN_SUPERVISOR), str(self.harness.settings.home), str(self.harness.objects.root),
                   self.engine]  # fmt: skip
        self.supervisor = subprocess.Popen(command)

    def strike(self, victim: str) -> None:
        if victim in ("engine", "both"):
            for process in find_processes(self.harness.settings.jobs):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        if victim in ("supervisor", "both"):
            self.end()
            self.start()

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.supervisor is not None:
            self.supervisor.send_signal(number)
            self.supervisor.wait()
            self.supervisor = None

    def rage(self, jobs: list[Resource], moments: int, span: float) -> int:
        """Strike at so many moments, `span` seconds apart at most; fewer when all jobs have ended before."""
        for struck in range(moments):
            time.sleep(self.draw.uniform(0, span))
            if self.over(jobs):
                return struck
            self.strike(self.draw.choice(VICTIMS))
        return moments

    def over(self, jobs: list[Resource]) -> bool:
        return all(self.harness.reload(job).ended for job in jobs)

    def calm(self, jobs: list[Resource], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.over(jobs):
            assert time.monotonic() < deadline, [(job.name, self.harness.reload(job).secondary) for job in jobs]
            time.sleep(0.1)


@contextmanager
def storm(root: Path, engine: str, seed: int) -> Iterator[Storm]:
    with supervisor_harness(root) as harness:
        rows = harness.objects.path("s3://data/rows/train.jsonl")
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        storm = Storm(harness, engine, seed)
        try:
            storm.start()
            yield storm
        finally:
            storm.end()
            for process in find_processes(harness.settings.home):
                process.kill()


def check(harness: Harness, jobs: list[Resource], expected: bytes, last_words: str) -> None:
    for job in map(harness.reload, jobs):
        assert job.status == "Completed", (job.name, job.training.failure)
        assert harness.weights(job) == expected, f"{job.name}: other weights than the undisturbed run's"
        stations = [station.status for station in job.training.transitions]
        assert stations == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
        events = (harness.folder(job) / "logs" / "events.jsonl").read_text().splitlines()
        seen = [json.loads(line)["message"] for line in events]
        log = (harness.folder(job) / "logs" / "engine.log").read_text().splitlines()
        assert [line for line in seen if not line.startswith("supervisor: ")] == log
        assert sum(last_words in line for line in log) == 1, f"{job.name}: its engine finished twice"
    assert find_processes(harness.settings.home) == []


@pytest.mark.parametrize("seed", [1])
def test_a_small_storm_over_fake_engines(tmp_path: Path, seed: int) -> None:
    with storm(tmp_path, "fake", seed) as it:
        jobs = [it.harness.create_job(f"job-{number}", **FAKE) for number in range(4)]
        it.rage(jobs, 5, 2.0)
        it.calm(jobs, 60)
        undisturbed = it.harness.create_job("undisturbed", **FAKE)
        it.calm([undisturbed], 30)
        check(it.harness, [*jobs, undisturbed], it.harness.weights(undisturbed), "done")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_long_storm_over_real_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with storm(tmp_path, "real", seed) as it:
        undisturbed = it.harness.create_job("undisturbed", **REAL)
        it.calm([undisturbed], 120)
        struck, jobs = 0, []
        while struck < 25:
            jobs += [it.harness.create_job(f"job-{struck}-{number}", **REAL) for number in range(3)]
            struck += it.rage(jobs, 25 - struck, 12.0)
        it.calm(jobs, 900)
        check(it.harness, jobs, it.harness.weights(undisturbed), "artifact ")


@pytest.mark.slow
def test_a_long_storm_over_fake_engines(tmp_path: Path) -> None:
    with storm(tmp_path, "fake", 7) as it:
        struck, jobs = 0, []
        while struck < 100:
            jobs += [it.harness.create_job(f"job-{struck}-{number}", **FAKE) for number in range(4)]
            struck += it.rage(jobs, 100 - struck, 2.5)
        it.calm(jobs, 600)
        undisturbed = it.harness.create_job("undisturbed", **FAKE)
        it.calm([undisturbed], 60)
        check(it.harness, jobs, it.harness.weights(undisturbed), "done")
