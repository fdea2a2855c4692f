"""The matrix of what is proved: its cells, which of them every run of the tests tries, and its page in the docs.

`proved.json` is written by the complete run (test_matrix.py, marked slow); docs/models.md shows it.
"""

from __future__ import annotations

import json
from pathlib import Path

from architectures.proof import KINDS, METHODS, Cell
from tiny_models import ALL, SHAPES, network_of

from luthier.catalog.entry import entries
from luthier.layers.attention import PACKABLE_ARCHITECTURES
from luthier.weights.lora_targets import linear_layer_names

HERE = Path(__file__).parent
PROVED = HERE / "proved.json"
PAGE = HERE.parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
# What an architecture cannot be, and a word of the refusal.
REFUSED = {("t5", kind): "cannot be tuned on" for kind in ("chat", "domain")}


def every_cell() -> list[Cell]:
    """The complete matrix."""
    return [Cell(name, method, kind) for name in ALL for method in METHODS for kind in KINDS]


def ordinary_cells() -> list[Cell]:
    """Every architecture in full and with LoRA on instruction rows; the other methods and kinds pairwise: each two of
    architecture, method and kind meet at least once.
    """
    cells = [Cell(name, method, "instruction") for name in ALL for method in ("full", "LoRA")]
    others = [method for method in METHODS if method not in ("full", "LoRA")]
    for row, name in enumerate(ALL):
        kinds = [kind for kind in KINDS if (name, kind) not in REFUSED]
        cells += [Cell(name, method, kinds[(row + place) % len(kinds)]) for place, method in enumerate(others)]
    return cells + [Cell("llama", method, kind) for method in ("full", "LoRA") for kind in KINDS[1:]]


def refusal(cell: Cell) -> str | None:
    """A word of the message that refuses this cell; None where it is to be proved."""
    return REFUSED.get((cell.architecture, cell.kind))


def render(outcomes: dict[str, str]) -> str:
    """The section of docs/models.md, between its marks."""
    letters = {kind: kind[0] for kind in KINDS}
    lines = [
        "| architecture | models of the catalogue | packed | linear layers | " + " | ".join(METHODS) + " |",
        "|---|---|---|---|" + "---|" * len(METHODS),
    ]
    for name in ALL:
        network = network_of(name)
        kind_of_model = type(network).__name__
        cells = []
        for method in METHODS:
            proved = [letters[kind] for kind in KINDS if outcomes.get(str(Cell(name, method, kind))) == "proved"]
            cells.append("".join(proved) or "no")
        targets = ", ".join(linear_layer_names(network))
        packed = "yes" if kind_of_model in PACKABLE_ARCHITECTURES else "no"
        facts = [_shown(name), _models(kind_of_model, name), packed, targets, *cells]
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join([BEGIN, *lines, END])


def _shown(name: str) -> str:
    return f"`{type(network_of(name)).__name__}`" + {"falcon_7b": " (7B)", "falcon_40b": " (40B)"}.get(name, "")


def _models(architecture: str, name: str) -> str:
    """How many entries of the catalogue are of this architecture; of Falcon's two, by the shape."""
    new = SHAPES[name].get("new_decoder_architecture")
    found = [
        entry for entry in entries()
        if entry.architecture == architecture
        and (new is None or bool(entry.shape.get("new_decoder_architecture")) == new)
    ]  # fmt: skip
    return str(len(found))


def write(outcomes: dict[str, str]) -> None:
    """Keep the outcomes of a complete run, and show them in docs/models.md."""
    PROVED.write_text(json.dumps(outcomes, indent=0, sort_keys=True) + "\n", "utf-8")
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + render(outcomes) + rest.partition(END)[2], "utf-8")


def read() -> dict[str, str]:
    """The outcomes of the last complete run."""
    found: dict[str, str] = json.loads(PROVED.read_text("utf-8"))
    return found
