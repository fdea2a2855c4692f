"""`luthier doctor`: what this machine offers; luthier.training.doctor finds out, since it may import torch."""

from __future__ import annotations

from luthier.cli.options import Json
from luthier.cli.program import Program


def doctor(as_json: Json = False) -> Program:
    """Show device, memory, disk, cores, compiler, extras and versions."""
    return Program("luthier.training.doctor", (), {"json": as_json})
