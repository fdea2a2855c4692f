"""The `luthier` command: one file per family of commands, one function per command.

Commands read options, check what can be checked cheaply, and start the program that does the work (`program.py`). No
module here imports torch, so `luthier --help` is instant.
"""

from luthier.cli.app import main

__all__ = ["main"]
