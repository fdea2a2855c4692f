"""The progress bar of a training run, fed from its metrics.jsonl."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from luthier.catalog.entry import parse_for
from luthier.catalog.locate import locate
from luthier.jobfolder import JobFolder


class MetricsProgressBar:
    """A bar in epochs (or steps where max_steps is set), with loss and the engine's last line beside it."""

    def __init__(self, folder: JobFolder) -> None:
        settings = parse_for(locate(folder.read_spec().model).entry, folder.read_hyperparameters())
        steps, epochs = int(settings["max_steps"] or -1), float(settings["epoch"] or 1)
        self._field, total = ("step", float(steps)) if steps > 0 else ("epoch", epochs)
        self._metrics = folder.metrics_lines
        self._read_bytes = 0
        self._bar = tqdm(
            total=total, desc=folder.root.name, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} {postfix}"
        )

    def update(self, line: str) -> None:
        """Show what metrics.jsonl has gained, and `line`, the engine's last line of output ("" for none)."""
        for entry in self._new_entries():
            self._bar.n = min(float(entry[self._field]), self._bar.total)
            if "loss" in entry:
                self._bar.set_postfix_str(f"step {entry['step']} loss {entry['loss']:.4f}", refresh=False)
        if line and not self._read_bytes:
            self._bar.set_postfix_str(line, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _new_entries(self) -> list[dict[str, Any]]:
        text = _read_from(self._metrics, self._read_bytes)
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _read_from(path: Path, start: int) -> bytes:
    try:
        with open(path, "rb") as handle:
            handle.seek(start)
            return handle.read()
    except FileNotFoundError:
        return b""


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")
