"""A step over micro-batches has the gradient of one big batch, the last partial accumulation included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, network_of
from torch import Tensor

from luthier.data.batches import BatchSampler, Layout, collate
from luthier.errors import LuthierError
from luthier.layers.batch import Batch
from luthier.training.process_group import ProcessGroup
from luthier.training.step import MicroBatches, StepResult, seed_random_numbers, take_step
from luthier.weights.model import Model


class Rows:
    """A token store of random rows whose trained parts differ widely in length."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(1)
        self.lengths = generator.integers(4, 24, count)
        self.rows = []
        for length in self.lengths:
            trained = np.arange(length) >= generator.integers(1, length)
            self.rows.append((generator.integers(0, 320, length), trained))

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[index]


def step_on(architecture: str, batches: list[list[int]], max_norm: float = 0.0) -> tuple[StepResult, dict[str, Tensor]]:
    """Take one step on `batches` of rows with SGD, so that weights show the gradient itself."""
    network = network_of(architecture)
    model = Model(network, torch.float32, torch.device("cpu"))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    rows = Rows(11)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    collated: list[Batch] = [collate(rows, batch_rows, Layout(True, 3)) for batch_rows in batches]  # type: ignore[arg-type]
    result = take_step(model, optimizer, MicroBatches(collated, "seed", ProcessGroup()), 1.0, max_norm)
    return result, {name: before[name] - value.detach() for name, value in network.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batches", [[[0, 1], [2, 3], [4, 5]], [[0], [1, 2, 3, 4, 5]], [[5, 4], [3, 2], [1], [0]]])
def test_accumulated_equals_one_batch(architecture: str, batches: list[list[int]]) -> None:
    whole, expected = step_on(architecture, [[0, 1, 2, 3, 4, 5]])
    parts, found = step_on(architecture, batches)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (parts.tokens, parts.completion_tokens) == (whole.tokens, whole.completion_tokens)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_last_partial_accumulation_weighs_its_own_tokens() -> None:
    plan = BatchSampler(rows=np.arange(11), rows_per_batch=2, accumulation=4, seed=0)
    last = plan.micro_batches(plan.steps_per_epoch - 1)
    assert [len(batch) for batch in last] == [2, 1]
    whole, expected = step_on("llama", [[row for batch in last for row in batch]])
    parts, found = step_on("llama", last)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_transformers_own_loss() -> None:
    rows = Rows(11)
    network = network_of("llama")
    labels_total = sum(int(rows.row(row)[1][1:].sum()) for row in range(4))
    for row in range(4):
        ids, trained = rows.row(row)
        labels = torch.from_numpy(np.where(trained, ids, -100))[None]
        labels[0, 0] = -100
        output = network(input_ids=torch.from_numpy(ids)[None], labels=labels, use_cache=False)
        count = int((labels != -100).sum())
        (output.loss * count / labels_total).backward()
    _, found = step_on("llama", [[0, 1], [2, 3]])
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_clipping_scales_the_whole_gradient() -> None:
    free, gradient = step_on("llama", [[0, 1, 2]])
    clipped, scaled = step_on("llama", [[0, 1, 2]], max_norm=free.gradient_norm / 10)
    assert clipped.gradient_norm == pytest.approx(free.gradient_norm, rel=1e-6)
    for name, value in gradient.items():
        torch.testing.assert_close(scaled[name], value / 10, rtol=1e-3, atol=1e-7)


def test_a_loss_that_is_not_finite_leaves_the_weights() -> None:
    network = network_of("llama")
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    kept = [value.detach().clone() for value in network.parameters()]
    model = Model(network, torch.float32, torch.device("cpu"))
    batch: Batch = collate(Rows(3), [0, 1], Layout(True, 3))  # type: ignore[arg-type]
    with pytest.raises(LuthierError, match=r"no longer finite .*learning_rate"):
        take_step(
            model, torch.optim.SGD(network.parameters(), lr=1.0), MicroBatches([batch], "", ProcessGroup()), 1.0, 1.0
        )
    for before, after in zip(kept, network.parameters(), strict=True):
        assert torch.equal(before.nan_to_num(), after.detach().nan_to_num())


def gradient_under_dropout(batches: list[list[int]], seed: str) -> dict[str, Tensor]:
    network = network_of("llama", dropout=0.3)
    model = Model(network.train(), torch.float32, torch.device("cpu"))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    rows = Rows(11)
    collated = [collate(rows, batch_rows, Layout(True, 3)) for batch_rows in batches]  # type: ignore[arg-type]
    take_step(
        model, torch.optim.SGD(network.parameters(), lr=1.0), MicroBatches(collated, seed, ProcessGroup()), 1.0, 0.0
    )
    return {name: before[name] - value.detach() for name, value in network.named_parameters()}


def test_dropout_is_drawn_from_the_seed_and_the_rows() -> None:
    """So the order of the micro-batches, and what else was drawn before, do not matter."""
    found = gradient_under_dropout([[0, 1], [2, 3]], "1:0")
    torch.rand(5)
    turned = gradient_under_dropout([[2, 3], [0, 1]], "1:0")
    for name, gradient in found.items():
        torch.testing.assert_close(turned[name], gradient, rtol=1e-4, atol=1e-6)
    other = gradient_under_dropout([[0, 1], [2, 3]], "1:1")
    assert any(not gradient.allclose(found[name]) for name, gradient in other.items())


@pytest.mark.parametrize("other", [("1:1", (0, 1)), ("1:0", (0, 2)), ("1:0", (1, 0)), ("1:0", (0,))])
def test_random_numbers_depend_on_seed_and_rows(other: tuple[str, tuple[int, ...]]) -> None:
    seed_random_numbers("1:0", (0, 1))
    first = torch.rand(4)
    seed_random_numbers(*other)
    assert not torch.equal(torch.rand(4), first)
    seed_random_numbers("1:0", (0, 1))
    assert torch.equal(torch.rand(4), first)
