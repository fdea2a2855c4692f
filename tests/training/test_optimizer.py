"""AdamW and the course of its learning rate, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import network_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from training.rank_harness import run_on_ranks

from luthier.errors import CheckpointError
from luthier.training.config import OptimizerSettings
from luthier.training.optimizer import (
    build_optimizer,
    clip_gradient,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
)
from luthier.training.process_group import ProcessGroup
from luthier.training.tensor_file import full_tensor

SETTINGS = OptimizerSettings(
    learning_rate=0.8, scheduler="linear", warmup_ratio=0.0, warmup_steps=0, weight_decay=0.0, betas=(0.9, 0.999),
    epsilon=1e-8, max_grad_norm=0.0, min_learning_rate=0.0, constant_steps=0, label_smoothing=0.0,
)  # fmt: skip


def course(steps: int, scheduler: str, ratio: float = 0.0, warmup: int = 0) -> list[float]:
    settings = replace(SETTINGS, scheduler=scheduler, warmup_ratio=ratio, warmup_steps=warmup)
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


@pytest.mark.parametrize(
    ("scheduler", "warmup", "constant", "expected"),
    [
        ("linear", 0, 0, [0.8, 0.725, 0.65, 0.575, 0.5, 0.425, 0.35, 0.275]),
        ("linear", 0, 4, [0.8, 0.65, 0.5, 0.35] + [0.2] * 4),
        ("linear", 2, 2, [0.4, 0.8, 0.8, 0.65, 0.5, 0.35, 0.2, 0.2]),
        ("cosine", 4, 0, [0.2, 0.4, 0.6, 0.8, 0.8, 0.712132, 0.5, 0.287868]),
        ("CosineAnnealing", 4, 0, [0.2, 0.4, 0.6, 0.8, 0.8, 0.712132, 0.5, 0.287868]),
        ("CosineAnnealing", 2, 4, [0.4, 0.8, 0.8, 0.5] + [0.2] * 4),
        ("CosineAnnealing", 0, 8, [0.2] * 8),  # all of them
        ("CosineAnnealing", 2, 8, [0.4, 0.8] + [0.2] * 6),  # warm-up goes first
        ("constant", 0, 4, [0.8] * 8),
        ("constant_with_warmup", 2, 4, [0.4] + [0.8] * 7),
    ],
)
def test_the_course_to_a_floor(scheduler: str, warmup: int, constant: int, expected: list[float]) -> None:
    settings = replace(
        SETTINGS, scheduler=scheduler, warmup_steps=warmup, constant_steps=constant, min_learning_rate=0.2
    )
    assert [round(learning_rate(step, 8, settings), 6) for step in range(8)] == expected


def test_a_course_never_leaves_its_bounds() -> None:
    for scheduler in ("linear", "cosine", "CosineAnnealing", "constant", "constant_with_warmup"):
        for steps in (1, 2, 9):
            for warmup in (0, 1, steps):
                rates = course(steps, scheduler, warmup=warmup)
                assert all(0 < rate <= 0.8 for rate in rates), (scheduler, steps, warmup)
        beyond = replace(SETTINGS, scheduler=scheduler)
        assert 0 <= learning_rate(20, 8, beyond) <= 0.8


def test_decay_is_for_matrices_alone() -> None:
    """A gradient of zero leaves nothing but the decay: weights shrink by learning rate times decay, vectors stay."""
    parameters = dict(network_of("gpt2").named_parameters())  # has biases and norms
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = build_optimizer(parameters, replace(SETTINGS, weight_decay=0.25, learning_rate=0.2))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {name for name, value in parameters.items() if not torch.equal(value, before[name])}
    assert shrunk == {name for name, value in parameters.items() if value.ndim == 2}
    for name in shrunk:
        torch.testing.assert_close(parameters[name].detach(), before[name] * 0.95)


def test_a_step_is_adamws() -> None:
    """Three steps by the paper's formulas."""
    settings = replace(SETTINGS, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-3, learning_rate=0.5)
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


def fresh() -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4)}
    parameters = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    return parameters, build_optimizer(parameters, replace(SETTINGS, weight_decay=0.1, learning_rate=0.01))


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
    optimizer = build_optimizer(half, replace(SETTINGS, weight_decay=0.1, learning_rate=0.01))
    train(half, optimizer, range(1, 2))
    assert not torch.equal(through["a.weight"], half["a.weight"])


def test_the_state_of_other_parameters_is_refused() -> None:
    parameters, optimizer = fresh()
    strange: dict[str, Tensor] = {"c.weight/exp_avg": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"'c\.weight', which this run does not train"):
        restore_optimizer(optimizer, parameters, strange)


# Clipping


def with_gradients(scale: float = 1.0) -> list[nn.Parameter]:
    parameters = list(fresh()[0].values())
    generator = torch.Generator().manual_seed(7)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    return [*parameters, nn.Parameter(torch.ones(2))]  # the last one has none


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping_is_torchs(max_norm: float) -> None:
    expected, found = with_gradients(), with_gradients()
    norm = nn.utils.clip_grad_norm_(expected, max_norm).item()
    assert clip_gradient(found, max_norm, ProcessGroup()) == norm
    for parameter, other in zip(found, expected, strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if parameter.grad is not None and other.grad is not None:
            assert torch.equal(parameter.grad, other.grad)


def test_the_norm_of_gradients_in_bf16_is_not_rounded() -> None:
    """Torch's own would be a number of bf16; of two parameters, one in each type."""
    parameters = [nn.Parameter(torch.zeros(300_000, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(7))]
    generator = torch.Generator().manual_seed(7)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    exact = torch.cat([gradient.double() for gradient in gradients]).norm().item()
    assert abs(torch.nn.utils.get_total_norm(gradients[:1]).item() - gradients[0].double().norm()) > 1e-4 * exact
    assert clip_gradient(parameters, 1.0, ProcessGroup()) == pytest.approx(exact, rel=1e-5)
    clipped = torch.cat([gradient.double() for gradient in gradients]).norm().item()
    assert clipped == pytest.approx(1.0, rel=1e-3)


def test_without_a_limit_and_without_an_end_nothing_is_scaled() -> None:
    parameters = with_gradients()
    before = [None if each.grad is None else each.grad.clone() for each in parameters]
    norm = clip_gradient(parameters, 0.0, ProcessGroup())
    assert norm == pytest.approx(sum(float(grad.square().sum()) for grad in before if grad is not None) ** 0.5)
    endless = with_gradients(float("inf"))
    assert not math.isfinite(clip_gradient(endless, 1.0, ProcessGroup()))
    for parameter, gradient in zip(parameters, before, strict=True):
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))


def clip_shards(group: ProcessGroup, max_norm: float) -> tuple[float, list[Tensor]]:
    mesh = init_device_mesh("cpu", (group.world_size,))
    parameters = []
    for parameter in with_gradients()[:-1]:
        assert parameter.grad is not None
        sharded = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]))
        sharded.grad = distribute_tensor(parameter.grad, mesh, [Shard(0)])
        parameters.append(sharded)
    norm = clip_gradient(parameters, max_norm, group)
    return norm, [full_tensor(each.grad) for each in parameters if each.grad is not None]


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_shards_are_clipped_by_the_norm_of_the_whole(max_norm: float) -> None:
    """Of three ranks the last holds none of a tensor of two rows."""
    parameters = with_gradients()
    norm = clip_gradient(parameters, max_norm, ProcessGroup())
    for found, gradients in run_on_ranks(3, clip_shards, max_norm):
        assert found == pytest.approx(norm, rel=1e-6)
        for gradient, parameter in zip(gradients, parameters, strict=False):
            assert parameter.grad is not None
            torch.testing.assert_close(gradient, parameter.grad)
