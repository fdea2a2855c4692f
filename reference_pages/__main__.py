"""Writes the generated pages of docs/: `python -m reference_pages [FOLDER]`, in a checkout of Luthier."""

from __future__ import annotations

import sys
from pathlib import Path

from reference_pages import write

if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
