"""The type of the `luthier` fixture (conftest.py): arguments in, a finished child process out."""

import subprocess
from collections.abc import Callable

Luthier = Callable[..., subprocess.CompletedProcess[str]]
