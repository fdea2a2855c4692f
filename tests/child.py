"""Type of the `luthier` fixture (conftest.py): a function of arguments that returns the finished child process."""

import subprocess
from collections.abc import Callable

Luthier = Callable[..., subprocess.CompletedProcess[str]]
