"""A notebook's code cells, one after the other in one namespace, as Jupyter runs them; the last line is a JSON object.

usage: run_notebook.py NOTEBOOK. `values`: what each cell's last expression came to, as text.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

path = Path(sys.argv[1])
namespace: dict[str, Any] = {"__name__": "__main__"}
values: list[str] = []
for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    place = f"{path.name}[{number}]"
    exec(compile(tree, place, "exec"), namespace)
    if isinstance(shown, ast.Expr):
        values.append(repr(eval(compile(ast.Expression(shown.value), place, "eval"), namespace)))
print("\n" + json.dumps({"values": values}))  # the SDKs leave their lines of dots open
