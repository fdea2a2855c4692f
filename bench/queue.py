"""The service's queue: how long create and describe take behind 10,000 waiting jobs, beside an empty queue.

    python3 run.py bench queue [--jobs 10000] [--database URL] [--json FILE]

A real `luthier serve` and boto3, one caller. The supervisor is held still (SIGSTOP), so that jobs wait and the clock
sees the server alone. Both queues are measured twice, and each time the better median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import psutil

from bench.field import machine
from bench.field.options import say

CALLS = 100
START_SECONDS = 60.0
ROLE = "arn:aws:iam::123456789012:role/bench"


def main(arguments: list[str]) -> int:
    """Run; 1 when a call behind the queue takes more than twice its time on an empty one."""
    parser = argparse.ArgumentParser(prog="run.py bench queue", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="waiting jobs (10,000)")
    parser.add_argument("--database", default="", help="an SQLAlchemy URL; SQLite in a new folder without it")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    run_options = parser.parse_args(arguments)
    if run_options.jobs < 1:
        parser.error(f"--jobs {run_options.jobs}: expected at least 1")
    facts = machine.describe()
    print(machine.headline(facts))
    with tempfile.TemporaryDirectory() as home:
        found = measure(Path(home), run_options.database, run_options.jobs)
    ratios = {name: found["full"][name] / found["empty"][name] for name in found["empty"]}
    for name, ratio in ratios.items():
        empty, full = (1000 * found[side][name] for side in ("empty", "full"))
        print(f"{name:10} {empty:8.2f} ms on an empty queue  {full:8.2f} ms behind {run_options.jobs:,}  {ratio:.2f}x")
    if run_options.json:
        record = {"machine": facts, "queue": {"jobs": run_options.jobs, "seconds": found, "ratios": ratios}}
        run_options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0 if max(ratios.values()) <= 2.0 else 1


def measure(home: Path, database: str, jobs: int) -> dict[str, dict[str, float]]:
    """Median seconds of each call, on the empty queue and on the full one."""
    command = [sys.executable, "-m", "luthier", "serve", "--port", "0", "--home", str(home)]
    server = subprocess.Popen(
        [*command, *(["--database", database] if database else [])], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    stopped: list[psutil.Process] = []
    try:
        client = _client(server)
        stopped = psutil.Process(server.pid).children(recursive=True)
        for child in stopped:
            child.send_signal(signal.SIGSTOP)
        empty = _timed(client, "empty")
        say(f"filling the queue with {jobs:,} jobs")
        for number in range(jobs):
            client.create_training_job(**_job(f"waiting-{number}"))
        full = _timed(client, "full")
    finally:
        for child in stopped:
            child.send_signal(signal.SIGCONT)
        server.terminate()
        server.communicate(timeout=START_SECONDS)
    return {"empty": empty, "full": full}


def _client(server: subprocess.Popen[str]) -> Any:
    """boto3's client of the server, once it says where it listens."""
    assert server.stdout is not None
    for line in server.stdout:
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        if address:
            return boto3.client(
                "sagemaker", endpoint_url=address[0], region_name="us-east-1", aws_access_key_id="bench",
                aws_secret_access_key="bench",
            )  # fmt: skip
    raise RuntimeError(f"luthier serve ended with {server.wait()} before it listened")


def _job(name: str) -> dict[str, Any]:
    where = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bench/rows"}}
    return {
        "TrainingJobName": name, "RoleArn": ROLE, "Environment": {"LUTHIER_MODEL": "luthier/tiny"},
        "AlgorithmSpecification": {"TrainingImage": "bench", "TrainingInputMode": "File"},
        "InputDataConfig": [{"ChannelName": "training", "DataSource": where}],
        "OutputDataConfig": {"S3OutputPath": "s3://bench/out"}, "HyperParameters": {"epoch": "1"},
    }  # fmt: skip


def _timed(client: Any, prefix: str) -> dict[str, float]:
    names = [f"{prefix}-{number}" for number in range(2 * CALLS)]
    rounds = [names[:CALLS], names[CALLS:]]

    def best(call: Callable[[str], object]) -> float:
        return min(median(_seconds(call, name) for name in each) for each in rounds)

    return {
        "create": best(lambda name: client.create_training_job(**_job(name))),
        "describe": best(lambda name: client.describe_training_job(TrainingJobName=name)),
        "list": best(lambda name: client.list_training_jobs(NameContains=name, MaxResults=10)),
    }


def _seconds(call: Callable[[str], object], name: str) -> float:
    started = time.perf_counter()
    call(name)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
