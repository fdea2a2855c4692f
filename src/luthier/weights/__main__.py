"""``python -m luthier.weights export``: the door of `luthier export`, with a JSON request on standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from luthier import door
from luthier.errors import UserError
from luthier.weights.export import export_adapter, export_merged
from luthier.weights.load import find_device
from luthier.weights.target import find_target


def main() -> None:
    """Export the run named in the request: {"run", "form": "merged" | "adapter", "out"}."""
    request = json.load(sys.stdin)
    console = Console()
    target = find_target(request["run"], console.print)
    if target.artifact is None:
        raise UserError(f"{request['run']}: a base model, not a run; there is nothing to export")
    out = Path(request["out"])
    if request["form"] == "adapter":
        export_adapter(target.artifact, out)
    else:
        dtype = target.dtype or torch.float32
        model = target.load(find_device("cpu"), dtype)
        export_merged(model, target.artifact, target.base, out, dict(target.provenance))
    console.print(f"exported  {out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    door.run(main)
