"""`luthier doctor`: what this machine offers; the engine does the looking, since only it may import torch."""

from __future__ import annotations

from luthier.cli.engine import Call
from luthier.cli.options import Json


def doctor(as_json: Json = False) -> Call:
    """Show device, memory, disk, cores, compiler, extras and versions."""
    return Call("luthier.training.doctor", (), {"json": as_json})
