"""An engine that honours the job folder's contract in milliseconds: ``python fake_engine.py FOLDER [--resume]``.

Its hyperparameters tell it what to do:

    steps, step_seconds     how long it trains; each step goes into metrics.jsonl and, every `save_steps`, a checkpoint
    fail                    refuse the rows: exit code 2 with this reason in output/failure
    break                   exit code 1 with this reason
    warn                    warnings of run.json, separated by |
    silent_end              exit code 3 and no reason; the log ends with this line
    die_at, die_times       end by SIGKILL after this step, so many times
    hang_at                 after this step do nothing any more; `deaf` hears no SIGTERM
    spin_at                 after this step compute for ever, and write nothing

The weights are a hash of all steps, so a run that lost or repeated one has others.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path
from types import FrameType
from typing import Any


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content)
    os.replace(temporary, path)


class FakeEngine:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings: dict[str, str] = json.loads((root / "input/config/hyperparameters.json").read_text())
        self.asked = False
        self.weights = "start"
        self.step = 0

    def number(self, name: str, default: float = 0) -> float:
        return float(self.settings.get(name, default))

    def save(self) -> None:
        write(self.root / f"checkpoints/step-{self.step:06d}/state.json", json.dumps([self.step, self.weights]))

    def load(self) -> None:
        found = sorted(self.root.glob("checkpoints/step-*/state.json"))
        if found:
            self.step, self.weights = json.loads(found[-1].read_text())
            print(f"resuming after step {self.step}", flush=True)

    def log(self, **line: Any) -> None:
        with open(self.root / "metrics.jsonl", "a") as handle:
            handle.write(json.dumps({"step": self.step, "epoch": self.step / 10, **line, "time": time.time()}) + "\n")

    def run(self, resume: bool) -> int:
        output = self.root / "output"
        output.mkdir(exist_ok=True)
        for name, code in (("fail", 2), ("break", 1)):
            if name in self.settings:
                write(output / "failure", self.settings[name] + "\n")
                return code
        if "silent_end" in self.settings:
            print(self.settings["silent_end"])
            return 3
        rows = sorted(path.read_text() for path in (self.root / "input/data/training").rglob("*") if path.is_file())
        print(f"{len(rows)} files of rows", flush=True)
        write(self.root / "split.json", "{}")
        if "warn" in self.settings:
            write(self.root / "run.json", json.dumps({"warnings": self.settings["warn"].split("|")}))
        if resume:
            self.load()
        signal.signal(signal.SIGTERM, self.on_signal)
        if (self.root / "finish").exists() and self.step:
            self.finish(rows)
            return 130
        while self.step < self.number("steps", 3):
            self.train()
            if self.asked:
                self.save()
                print("stopped; the checkpoint is written", flush=True)
                if (self.root / "finish").exists():
                    self.finish(rows)
                return 130
        self.finish(rows)
        return 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = "deaf" not in self.settings

    def train(self) -> None:
        time.sleep(self.number("step_seconds", 0.01))
        self.step += 1
        self.weights = hashlib.sha256(f"{self.weights}:{self.step}".encode()).hexdigest()
        self.log(loss=1 / self.step)
        print(f"step {self.step}", flush=True)
        if self.step % int(self.number("save_steps", 1)) == 0:
            self.save()
        if self.step == self.number("die_at", -1):
            deaths = self.root / "deaths"
            count = int(deaths.read_text()) if deaths.exists() else 0
            if count < self.number("die_times", 1):
                deaths.write_text(str(count + 1))
                os.kill(os.getpid(), signal.SIGKILL)
        while self.step == self.number("hang_at", -1) and not self.asked:
            time.sleep(0.05)
        while self.step == self.number("spin_at", -1) and not self.asked:
            sum(range(1000))

    def finish(self, rows: list[str]) -> None:
        self.log(eval_loss=0.5)
        model = json.dumps({"weights": self.weights, "rows": rows}).encode()
        (self.root / "model").mkdir(exist_ok=True)
        (self.root / "model/model.safetensors").write_bytes(model)
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
            member = tarfile.TarInfo("model.safetensors")
            member.size = len(model)
            tar.addfile(member, io.BytesIO(model))
        temporary = self.root / ".model.tar.gz.writing"
        temporary.write_bytes(packed.getvalue())
        temporary.replace(self.root / "model.tar.gz")
        scores = {"loss": 0.5, "perplexity": 1.65, "rouge1": 0.4, "rouge2": 0.2, "rougeL": 0.3, "rougeLsum": 0.3}
        metrics = {"base": {"loss": 2.0, "perplexity": None}, "tuned": scores, "best": {"step": 1, "eval_loss": 0.5}}
        write(self.root / "ledger.jsonl", "{}\n")
        write(self.root / "metrics.json", json.dumps(metrics))
        write(self.root / "report.html", "<p>done</p>")
        print("done", flush=True)


def main() -> None:
    engine = FakeEngine(Path(sys.argv[1]))
    with open(engine.root / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (engine.root / "runs").open("a").write(f"{time.time()}\n")
        sys.exit(engine.run("--resume" in sys.argv))


if __name__ == "__main__":
    main()
