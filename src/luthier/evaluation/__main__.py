"""``python -m luthier.evaluation generate|evaluate|compare|export``: reads a JSON request on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape

from luthier import entrypoint
from luthier.errors import UserError
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.export import export
from luthier.evaluation.generate import print_generations
from luthier.evaluation.table import before_after_table
from luthier.jobfolder import JobFolder


def show_comparison(request: dict[str, Any], console: Console) -> None:
    """Print a finished run's before/after table, or its metrics.json with {"json": true}."""
    folder = JobFolder(request["run"])
    folder.read_spec()
    if not folder.metrics.exists():
        reason = folder.failure.read_text("utf-8", "replace").strip() if folder.failure.exists() else ""
        raise UserError(
            f"{request['run']}: no metrics.json; the run failed: {reason}" if reason else
            f"{request['run']}: run not finished (no metrics.json); resume it with luthier tune --resume --out RUN"
        )  # fmt: skip
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    if request.get("json"):
        sys.stdout.write(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
        return
    if metrics["split"] is None:
        console.print("no held-out rows were scored in this run")
    else:
        console.print(before_after_table(metrics))
    for note in metrics["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)


COMMANDS: dict[str, Callable[[dict[str, Any], Console], None]] = {
    "generate": print_generations,
    "evaluate": evaluate,
    "compare": show_comparison,
    "export": export,
}


def main() -> None:
    """Run the command named in the first argument."""
    COMMANDS[sys.argv[1]](json.load(sys.stdin), Console())


if __name__ == "__main__":
    entrypoint.run(main)
