"""Every architecture, by every method, on every kind of data: trained, reloaded, merged, asked and resumed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from architectures import matrix
from architectures.proof import KINDS, METHODS, Cell, prove
from tiny_models import ALL

from luthier.errors import UserError


def outcome(cell: Cell, place: Path, *, resume: bool = True) -> str:
    """``proved``, or ``refused`` where a refusal is expected; AssertionError else."""
    word = matrix.refusal(cell)
    if word is None:
        prove(cell, place, resume=resume)
        return "proved"
    with pytest.raises(UserError, match=word):
        prove(cell, place)
    return "refused"


@pytest.mark.parametrize("cell", matrix.ordinary_cells(), ids=str)
def test_a_cell(cell: Cell, tmp_path: Path) -> None:
    # Each architecture is resumed in full and with LoRA, each method and kind on Llama; the complete run does all.
    outcome(cell, tmp_path, resume=cell.kind == "instruction" or cell.architecture == "llama")


@pytest.mark.parametrize("kind", ["chat", "domain"])
def test_what_an_encoder_decoder_cannot_learn_is_refused(kind: str, tmp_path: Path) -> None:
    assert outcome(Cell("t5", "LoRA", kind), tmp_path) == "refused"


def test_each_two_of_architecture_method_and_kind_meet_in_every_run() -> None:
    cells = matrix.ordinary_cells()
    met = {pair for cell in cells for pair in itertools.combinations((cell.architecture, cell.method, cell.kind), 2)}
    possible = {(name, kind) for name in ALL for kind in KINDS} - set(matrix.REFUSED)
    assert met >= possible
    assert met >= set(itertools.product(ALL, METHODS))
    assert met >= set(itertools.product(METHODS, KINDS))


def test_the_docs_show_the_last_complete_run() -> None:
    outcomes = matrix.read()
    assert set(outcomes) == {str(cell) for cell in matrix.every_cell()}, "run the complete matrix again (-m slow)"
    assert set(outcomes.values()) <= {"proved", "refused"}
    assert matrix.render(outcomes) in matrix.PAGE.read_text("utf-8"), "run the complete matrix again (-m slow)"


@pytest.mark.slow
def test_the_complete_matrix(tmp_path: Path) -> None:
    """All cells, some minutes; writes proved.json and docs/models.md."""
    outcomes: dict[str, str] = {}
    failed: list[str] = []
    for number, cell in enumerate(matrix.every_cell()):
        place = tmp_path / str(number)
        place.mkdir()
        try:
            outcomes[str(cell)] = outcome(cell, place)
        except Exception as error:
            failed.append(f"{cell}: {type(error).__name__}: {error}"[:300])
    assert not failed, "\n".join(failed)
    matrix.write(outcomes)
