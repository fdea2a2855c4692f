"""The `luthier` command: one file per family of commands, one function per command.

It reads options, refuses what cannot work, and hands over to the engine (`engine.py`). It knows nothing of tensors:
no module here imports torch, so `luthier --help` is instant.
"""

from luthier.cli.app import main

__all__ = ["main"]
