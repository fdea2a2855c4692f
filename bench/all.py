"""Every bench, one after the other, into one file: train, prepare, generate, startup, ranks.

python3 run.py bench [all] [--peers trl,hf,torchtune,litgpt] [--shape 135m] [--method lora,full] [--json FILE]
"""

from __future__ import annotations

import sys
from typing import Any

from bench import generate, prepare, ranks, startup, train
from bench.field import machine, options
from bench.field.shapes import SHAPES


def main(arguments: list[str]) -> int:
    """Run them all."""
    run_options = options.parse(arguments, SHAPES, (__doc__ or "").splitlines()[0])
    facts = machine.describe()
    print(machine.headline(facts))
    results: dict[str, Any] = {}
    for bench in (train, prepare, generate, startup, ranks):
        results |= bench.run(run_options)
        options.write(run_options, options.record(run_options, results) | {"machine": facts})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
