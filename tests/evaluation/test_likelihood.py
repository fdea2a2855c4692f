"""Likelihoods are Hugging Face's own, row by row, however the rows are batched and the head is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, network_of
from token_rows import VOCAB, loss_alone, write_store

from luthier.data.batches import Layout
from luthier.evaluation.likelihood import Likelihood, RowLikelihood, aggregate, score_rows
from luthier.layers import head_loss
from luthier.weights.model import Model

LENGTHS = [9, 30, 2, 17, 17, 5, 41, 3]


@pytest.mark.parametrize(("packed", "rows_per_batch"), [(True, 3), (True, 100), (False, 3), (False, 1), (True, 1)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_row_scores_as_it_does_alone(tmp_path: Path, architecture: str, packed: bool, rows_per_batch: int) -> None:
    network = network_of(architecture)
    store = write_store(tmp_path, LENGTHS)
    model = Model(network, torch.float32, torch.device("cpu"))
    rows = np.array([0, 1, 2, 4, 6, 7])
    scored = {
        row.row: row for row in score_rows(model, store, rows, rows_per_batch=rows_per_batch, layout=Layout(packed, 3))
    }
    assert sorted(scored) == rows.tolist()
    for row in rows.tolist():
        nats, count, hits = loss_alone(network, store, row)
        assert scored[row].loss_sum == pytest.approx(nats, rel=1e-5)
        assert (scored[row].tokens, scored[row].correct) == (count, hits)


def test_logits_are_held_for_one_chunk_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path, LENGTHS)
    model = Model(network_of("llama"), torch.float32, torch.device("cpu"))
    rows = np.arange(len(LENGTHS))
    whole = list(score_rows(model, store, rows, rows_per_batch=8, layout=Layout(True, 3)))
    sizes: list[int] = []
    plain = head_loss.OutputHead.logits

    def measured(hidden: torch.Tensor, *rest: torch.Tensor | torch.dtype | None) -> torch.Tensor:
        logits: torch.Tensor = plain(hidden, *rest)  # type: ignore[arg-type]
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", 7 * VOCAB)
    monkeypatch.setattr(head_loss.OutputHead, "logits", measured)
    chunked = list(score_rows(model, store, rows, rows_per_batch=8, layout=Layout(True, 3)))
    assert max(sizes) == 7 * VOCAB
    assert sum(sizes) == int(store.trained_counts.sum()) * VOCAB
    counts = [[(row.row, row.tokens, row.correct) for row in rows] for rows in (chunked, whole)]
    assert counts[0] == counts[1]
    assert [row.loss_sum for row in chunked] == pytest.approx([row.loss_sum for row in whole], rel=1e-6)


def test_the_total_weighs_tokens_not_rows() -> None:
    rows = [RowLikelihood(0, loss_sum=2.0, tokens=1, correct=1), RowLikelihood(1, loss_sum=3.0, tokens=9, correct=2)]
    assert aggregate(iter(rows)) == Likelihood(loss=0.5, token_accuracy=0.3, tokens=10)
    assert aggregate(iter([])) == Likelihood(0.0, 0.0, 0)
