"""Float16's loss scale: torch's own rule, a step repeated as if it had not overflowed, and a resume that goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import network_of, write_model, write_rows
from torch import Tensor
from training.job_folders import lay_out, lines, run

from luthier.data.batches import Layout, collate
from luthier.errors import LuthierError
from luthier.layers.batch import Batch
from luthier.training import loss_scale
from luthier.training.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, MIN_SCALE, LossScale
from luthier.training.process_group import ProcessGroup
from luthier.training.step import MicroBatches, take_step
from luthier.weights.model import Model


def test_the_rule_is_torchs() -> None:
    torchs = torch.amp.GradScaler("cpu")
    assert torchs.get_scale() == INITIAL_SCALE
    assert torchs.get_growth_interval() == GROWTH_INTERVAL
    scale = LossScale()
    assert scale.decrease()
    assert scale.value == INITIAL_SCALE * torchs.get_backoff_factor()
    for _ in range(GROWTH_INTERVAL - 1):
        scale.count_finite_step()
    assert scale.value == INITIAL_SCALE / 2
    scale.count_finite_step()
    assert (scale.value, scale.steady_steps) == (INITIAL_SCALE / 2 * torchs.get_growth_factor(), 0)


def test_an_overflow_starts_the_count_anew() -> None:
    scale = LossScale(steady_steps=GROWTH_INTERVAL - 1)
    scale.decrease()
    scale.count_finite_step()
    assert (scale.value, scale.steady_steps) == (INITIAL_SCALE / 2, 1)


def test_the_last_scale_is_one() -> None:
    scale = LossScale(2 * MIN_SCALE)
    assert scale.decrease()
    assert not scale.decrease()


class Rows:
    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(index)
        return generator.integers(4, 320, 12), np.arange(12) >= 3


def micro_batches_of(*rows: list[int]) -> MicroBatches:
    batches: list[Batch] = [collate(Rows(), each, Layout(True, 3)) for each in rows]  # type: ignore[arg-type]
    return MicroBatches(batches, "5:0", ProcessGroup())


def step_under(scale: LossScale) -> tuple[float, dict[str, Tensor]]:
    """A step of plain SGD on a model with dropout, so that the weights show the gradient."""
    network = network_of("gpt2", dropout=0.3)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    micro_batches = micro_batches_of([0, 1], [2])
    model = Model(network, torch.float16, torch.device("cpu"))
    result = take_step(model, optimizer, micro_batches, 1.0, 0.0, scale=scale)
    return result.loss, {name: value.detach() for name, value in network.named_parameters()}


def test_a_step_that_overflows_is_the_step_under_the_lower_scale() -> None:
    high = LossScale(2.0**40, steady_steps=7)
    loss, weights = step_under(high)
    assert high.value < 2.0**40
    assert high.steady_steps == 1
    low = LossScale(high.value)
    assert step_under(low)[0] == loss
    assert low.value == high.value
    assert all(torch.equal(value, weights[name]) for name, value in step_under(LossScale(high.value))[1].items())


def test_what_no_scale_saves_is_refused_with_the_weights_as_they_were() -> None:
    network = network_of("llama")
    network.train()
    with torch.no_grad():
        next(network.parameters()).fill_(float("inf"))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    model = Model(network, torch.float16, torch.device("cpu"))
    scale = LossScale()
    with pytest.raises(LuthierError, match=r"float16 overflows where bfloat16 does not: set bf16=True"):
        take_step(model, torch.optim.SGD(network.parameters(), lr=1.0), micro_batches_of([0]), 1.0, 1.0, scale=scale)
    assert scale.value == INITIAL_SCALE  # the loss itself is not finite: no scale would help
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_a_resumed_run_goes_on_with_the_scale_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)  # so that it changes within the run
    model = write_model(tmp_path / "model", "llama", dropout=0.1)
    rows = write_rows(tmp_path / "rows" / "train.jsonl", 15).parent
    folder = lay_out(tmp_path / "run", model, rows, fp16=True, save_steps=1, save_total_limit=99, score_rows=0)
    run(folder)
    whole, weights = lines(folder), load_file(folder.model / "adapter_model.safetensors")
    scales = [line["loss_scale"] for line in whole if "loss_scale" in line]
    assert len(set(scales)) > 1
    assert scales[4:7] != scales[:3]  # with the scale and the count of the start it would go on otherwise
    for step in range(5, len(scales) + 1):
        shutil.rmtree(folder.checkpoints / f"step-{step:06d}")
    assert "resuming after step 4" in run(folder, resume=True)
    assert lines(folder) == whole
    resumed = load_file(folder.model / "adapter_model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in resumed.items())
