"""AdamW and the course of its learning rate, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import network_of
from torch import Tensor, nn

from luthier.errors import CheckpointError
from luthier.training.config import OptimizerSettings
from luthier.training.optimizer import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer

PLAIN = OptimizerSettings(0.8, "linear", 0.0, 0, 0.0, (0.9, 0.999), 1e-8, 0.0)


def course(steps: int, scheduler: str, ratio: float = 0.0, warmup: int = 0) -> list[float]:
    settings = replace(PLAIN, scheduler=scheduler, warmup_ratio=ratio, warmup_steps=warmup)
    return [round(learning_rate(step, steps, settings), 6) for step in range(steps)]


@pytest.mark.parametrize(
    ("scheduler", "ratio", "warmup", "expected"),
    [
        ("linear", 0.0, 0, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 0.0, 4, [0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.5, 0, [0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.9, 4, [0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2]),  # steps go before the ratio
        ("cosine", 0.0, 4, [0.2, 0.4, 0.6, 0.8, 0.8, 0.682843, 0.4, 0.117157]),
        ("constant", 0.0, 0, [0.8] * 8),
        ("constant", 0.5, 4, [0.8] * 8),
        ("constant_with_warmup", 0.0, 4, [0.2, 0.4, 0.6] + [0.8] * 5),
        ("constant_with_warmup", 0.26, 0, [0.266667, 0.533333] + [0.8] * 6),  # 2.08 steps are three
        ("linear", 1.0, 0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        ("linear", 0.0, 16, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]),  # longer than the run
    ],
)
def test_the_course(scheduler: str, ratio: float, warmup: int, expected: list[float]) -> None:
    assert course(8, scheduler, ratio, warmup) == expected


def test_a_course_never_leaves_its_bounds() -> None:
    for scheduler in ("linear", "cosine", "constant", "constant_with_warmup"):
        for steps in (1, 2, 9):
            for warmup in (0, 1, steps):
                rates = course(steps, scheduler, warmup=warmup)
                assert all(0 < rate <= 0.8 for rate in rates), (scheduler, steps, warmup)
        beyond = replace(PLAIN, scheduler=scheduler)
        assert 0 <= learning_rate(20, 8, beyond) <= 0.8


def test_decay_is_for_matrices_alone() -> None:
    """A gradient of zero leaves nothing but the decay: weights shrink by learning rate times decay, vectors stay."""
    parameters = dict(network_of("gpt2").named_parameters())  # has biases and norms
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = build_optimizer(parameters, replace(PLAIN, weight_decay=0.25, learning_rate=0.2))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {name for name, value in parameters.items() if not torch.equal(value, before[name])}
    assert shrunk == {name for name, value in parameters.items() if value.ndim == 2}
    for name in shrunk:
        torch.testing.assert_close(parameters[name].detach(), before[name] * 0.95)


def test_a_step_is_adamws() -> None:
    """Three steps by the paper's formulas."""
    settings = replace(PLAIN, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-3, learning_rate=0.5)
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    optimizer = build_optimizer({"w": weight}, settings)
    expected, mean, square = weight.detach().clone(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step, gradient in enumerate(torch.tensor([[[0.3, -1.0]], [[0.1, 2.0]], [[-0.5, 0.0]]]).double(), start=1):
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        expected = expected - 0.5 * 0.1 * expected
        expected = expected - 0.5 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-3)
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def train(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def fresh() -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4)}
    parameters = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    return parameters, build_optimizer(parameters, replace(PLAIN, weight_decay=0.1, learning_rate=0.01))


def test_a_restored_optimizer_goes_on_as_the_uninterrupted_one() -> None:
    through, optimizer = fresh()
    train(through, optimizer, range(6))
    before, optimizer = fresh()
    train(before, optimizer, range(3))
    stored = {name: value.clone() for name, value in optimizer_tensors(optimizer, before).items()}
    assert set(stored) == {f"{name}/{moment}" for name in before for moment in ("step", "exp_avg", "exp_avg_sq")}
    after, optimizer = fresh()
    restore_optimizer(optimizer, after, stored)
    with torch.no_grad():
        for name, value in before.items():
            after[name].copy_(value)
    train(after, optimizer, range(3, 6))
    assert all(torch.equal(value, after[name]) for name, value in through.items())


def test_without_its_moments_it_would_go_on_otherwise() -> None:
    """What the test before this one must notice."""
    through, optimizer = fresh()
    train(through, optimizer, range(2))
    half, optimizer = fresh()
    train(half, optimizer, range(1))
    optimizer = build_optimizer(half, replace(PLAIN, weight_decay=0.1, learning_rate=0.01))
    train(half, optimizer, range(1, 2))
    assert not torch.equal(through["a.weight"], half["a.weight"])


def test_the_state_of_other_parameters_is_refused() -> None:
    parameters, optimizer = fresh()
    strange: dict[str, Tensor] = {"c.weight/exp_avg": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"'c\.weight', which this run does not train"):
        restore_optimizer(optimizer, parameters, strange)
