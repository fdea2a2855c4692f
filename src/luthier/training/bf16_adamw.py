"""AdamW over weights, gradients and moments in bf16: 8 bytes a parameter, where fp32 masters take 16.

    weight, gradient, moments --fp32--> AdamW --rounded stochastically--> weight, moments

A step of AdamW moves a weight by less than bf16 can tell, more often than not: rounded to the nearest number, it would
stay where it is. Rounded up or down by chance, in proportion to how near each is, it moves by the right amount on
average (Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv:2010.06192). The second moment needs it as much: it
shrinks by a thousandth a step, a quarter of what the nearest bf16 number is away, and would never come down.

A piece at a time passes through fp32, in the processor's cache. Noise is a function of (seed, step, place in the
whole): every rank draws the same, and so does one that holds a share, or a run that goes on from a checkpoint. torch's
own random numbers are left alone. It knows parameters and their gradients, nothing of models or schedules.

Shapes: L lanes (numbers of a piece), C numbers of a piece that are there, row: which piece of a tensor.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from luthier.training.tensor_file import local

CACHED = 128 * 1024  # numbers of a piece on a CPU: 512 kB in fp32
AT_ONCE = 8 * 1024 * 1024  # on other devices, where what costs is to start a piece
LARGEST = torch.finfo(torch.bfloat16).max
_LOW_BITS = 0xFFFF  # of fp32, which bf16 does not have


@dataclass(frozen=True, slots=True)
class Rule:
    """What one update of one tensor goes by; `step` counts from 1."""

    rate: float
    betas: tuple[float, float]
    epsilon: float
    decay: float
    step: int


class Bf16AdamW(torch.optim.Optimizer):
    """AdamW as `torch.optim.AdamW`, which rounds stochastically what it leaves in bf16.

    Its state has the names of torch's: step, exp_avg, exp_avg_sq. Parameters are whole or sharded by rows (FSDP2), and
    contiguous; one that is not bf16 is updated as it is, its moments of its own type.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, seed: int
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.seed = seed
        self._noise: Noise | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        parameters = [(group, parameter) for group in self.param_groups for parameter in group["params"]]
        for place, (group, parameter) in enumerate(parameters):
            if parameter.grad is not None:
                self._update(parameter, group, place)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter),
                      "exp_avg_sq": torch.zeros_like(parameter)}  # fmt: skip
        state["step"] += 1
        rule = Rule(group["lr"], group["betas"], group["eps"], group["weight_decay"], int(state["step"]))
        if self._noise is None:
            self._noise = Noise(self.seed, parameter.device)
        weight, mean, square = (local(each).view(-1) for each in (parameter, state["exp_avg"], state["exp_avg_sq"]))
        gradient = local(parameter.grad).reshape(-1) if parameter.grad is not None else weight.new_zeros(0)
        start, size = _start(parameter), len(self._noise.lanes_L)
        for row in range(start // size, -(-(start + len(weight)) // size)) if len(weight) else ():
            first, last = max(row * size - start, 0), min((row + 1) * size - start, len(weight))
            lanes = slice(start + first - row * size, start + last - row * size)
            noises = self._noise.draw(f"{rule.step}:{place}:{row}", lanes)
            piece = slice(first, last)
            update(weight[piece], gradient[piece], mean[piece], square[piece], rule, noises)


def update(
    weight_C: Tensor, gradient_C: Tensor, mean_C: Tensor, square_C: Tensor, rule: Rule, noises: tuple[Tensor, Tensor]
) -> None:
    """One step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on a piece, in fp32, in place.

    `noises`: for the weight, and for the moments, as `rounded` takes it. The weight's step is made of the moments
    before they are rounded.
    """
    beta1, beta2 = rule.betas
    gradient = gradient_C.float()
    mean = mean_C.float().lerp_(gradient, 1.0 - beta1)
    square = square_C.float().mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    # mean / (sqrt(square) / unbiased + epsilon), with a division less
    unbiased = math.sqrt(1.0 - beta2**rule.step)
    spread = square.sqrt().add_(rule.epsilon * unbiased)
    weight = weight_C.float()
    if rule.decay:
        weight.mul_(1.0 - rule.rate * rule.decay)
    weight.addcdiv_(mean, spread, value=-rule.rate * unbiased / (1.0 - beta1**rule.step))
    of_weight, of_moments = noises
    news = ((weight_C, weight, of_weight), (mean_C, mean, of_moments), (square_C, square, of_moments))
    for kept_C, new, noise_C in news:
        kept_C.copy_(rounded(new, noise_C) if kept_C.dtype is torch.bfloat16 else new)


def rounded(numbers_C: Tensor, noise_C: Tensor) -> Tensor:
    """fp32 numbers rounded to such that bf16 has, the next one below or above; they are used up.

    `noise_C`: int32, from 0 to 65535, each as likely: added to the bits that are cut off then, it carries over as often
    as the number is near the one above. Numbers of bf16 stay; no finite one becomes infinite, none that is not, finite.
    """
    lowest, highest = torch.aminmax(numbers_C)
    if lowest.item() >= -LARGEST and highest.item() <= LARGEST:  # not where there is a NaN
        numbers_C.view(torch.int32).add_(noise_C).bitwise_and_(~_LOW_BITS)
        return numbers_C
    finite_C = rounded(numbers_C.nan_to_num(0.0).clamp_(-LARGEST, LARGEST), noise_C)
    return torch.where(numbers_C.isfinite(), finite_C, numbers_C)


class Noise:
    """Random numbers by address: 16 bits for each number of a piece, always the same for a seed.

    A piece multiplies the same random lanes by a factor of its own, adds a summand, and takes the upper half of the
    32 bits (Dietzfelbinger 1996, "Universal hashing and k-wise independent random variables via integer arithmetic
    without primes"): any two of its numbers are independent, at a fifth of the cost of drawing anew.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        size = CACHED if device.type == "cpu" else AT_ONCE
        numbers = torch.empty(size // 2, dtype=torch.int64)
        generator = torch.Generator().manual_seed(seed)
        self.lanes_L = numbers.random_(-(2**63), None, generator=generator).view(torch.int32).to(device)

    def draw(self, address: str, lanes: slice) -> tuple[Tensor, Tensor]:
        """Noise at `lanes` of an address, and other noise."""
        digest = hashlib.sha256(f"{self.seed}:{address}".encode()).digest()
        factor, summand, other_factor, other_summand = struct.unpack("<4i", digest[:16])
        return self._mixed(factor, summand, lanes), self._mixed(other_factor, other_summand, lanes)

    def _mixed(self, factor: int, summand: int, lanes: slice) -> Tensor:
        mixed = (self.lanes_L[lanes] * (factor | 1)).add_(summand)
        return mixed.bitwise_right_shift_(16).bitwise_and_(_LOW_BITS)


def _start(parameter: nn.Parameter) -> int:
    """Where this rank's share of a parameter begins in the whole, both flattened."""
    if not isinstance(parameter, DTensor):
        return 0
    mesh, rows = parameter.device_mesh, parameter.shape[0]
    assert parameter.placements == (Shard(0),), "FSDP2 deals out rows"
    each = -(-rows // mesh.size())
    return min(mesh.get_local_rank() * each, rows) * (parameter.numel() // rows)
