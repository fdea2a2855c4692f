"""Reports training progress: metrics.jsonl, TensorBoard events and the progress bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter


class MetricsLog:
    """metrics.jsonl, one flushed line per logged step and per validation, also written as TensorBoard events.

    A resumed run first removes the lines after its checkpoint, so that each step appears once.
    """

    def __init__(self, path: Path, events: Path, resume_step: int) -> None:
        kept = [line for line in _lines(path) if line["step"] <= resume_step] if resume_step else []
        with open(path, "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(line) + "\n" for line in kept)
        self._handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._events = SummaryWriter(str(events), purge_step=resume_step + 1 if resume_step else None)

    def write(self, **line: Any) -> None:
        """Append a line, and write its numbers to TensorBoard under their names."""
        line["time"] = round(time.time(), 3)
        self._handle.write(json.dumps(line) + "\n")
        self._handle.flush()
        for name, value in line.items():
            if name not in ("step", "time") and value is not None:
                self._events.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._handle.close()
        self._events.close()


class NullMetricsLog:
    """The log of the other ranks, which write nothing."""

    def write(self, **line: Any) -> None: ...

    def close(self) -> None: ...


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; a killed run may have left half a line."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class TrainingBar:
    """Progress of a run: a live bar in a terminal, a printed line every half minute elsewhere."""

    LINE_SECONDS = 30.0

    def __init__(self, console: Console, total_steps: int, done_steps: int) -> None:
        self._console = console
        self._total = total_steps
        self._live = console.is_terminal
        self._started = time.monotonic()
        self._last_line = self._started
        self._tokens = 0
        self._bar = Progress(
            TextColumn("[bold]training"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("loss [cyan]{task.fields[loss]}"), TextColumn("{task.fields[rate]} tok/s"),
            TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), console=console, disable=not self._live,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=total_steps, completed=done_steps, loss="-", rate="-")

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int, loss: float, tokens: int) -> None:
        """Show a finished step: its loss in nats per token and its number of tokens without padding."""
        self._tokens += tokens
        now = time.monotonic()
        rate = f"{self._tokens / max(now - self._started, 1e-9):,.0f}"
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=rate)
        if not self._live and (now - self._last_line > self.LINE_SECONDS or step == self._total):
            self._last_line = now
            self.print(f"step {step}/{self._total}  loss {loss:.4f}  {rate} tok/s")

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False)
        sys.stdout.flush()
