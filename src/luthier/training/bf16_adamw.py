"""AdamW over weights, gradients and moments in bf16: 8 bytes per parameter, where fp32 master weights take 16.

    weight, gradient, moments --fp32--> AdamW --stochastic rounding--> weight, moments

A step of AdamW usually changes a weight by less than bf16 can represent: rounded to the nearest value, the weight would
not move. Rounded up or down at random, in proportion to the distance, it moves by the right amount on average (Zamirai
et al. 2020, "Revisiting BFloat16 Training", arXiv:2010.06192). The second moment needs it as much: it decays by a
thousandth per step, a quarter of the distance to the next bf16 value, and would never decrease.

Tensors pass through fp32 in chunks that fit in the processor's cache. The noise is a function of (seed, step, position
in the full tensor), so sharded and resumed runs draw the same noise; torch's own generator is not used. This module
depends on parameters and their gradients, not on models or schedules.

Shapes: L lanes (numbers of a full chunk), C numbers of the part of a chunk that this rank holds.
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

from luthier.training.tensor_file import local_tensor

CPU_CHUNK = 128 * 1024  # numbers per chunk on a CPU: 512 kB in fp32
DEVICE_CHUNK = 8 * 1024 * 1024  # on other devices, where launching each chunk dominates
BF16_MAX = torch.finfo(torch.bfloat16).max
_LOW_BITS = 0xFFFF  # the bits of fp32 that bf16 does not have


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """The settings of one update of one tensor; `step` counts from 1."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    step: int


class Bf16AdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` with stochastic rounding of bf16 weights and moments.

    The state has torch's names: step, exp_avg, exp_avg_sq. Parameters are contiguous, full or sharded by rows (FSDP2);
    one that is not bf16 is updated without rounding, with moments of its own dtype.
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
        for index, (group, parameter) in enumerate(parameters):
            if parameter.grad is not None:
                self._update(parameter, group, index)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], index: int) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter),
                      "exp_avg_sq": torch.zeros_like(parameter)}  # fmt: skip
        state["step"] += 1
        settings = UpdateSettings(
            learning_rate=group["lr"], betas=group["betas"], epsilon=group["eps"], weight_decay=group["weight_decay"],
            step=int(state["step"]),
        )  # fmt: skip
        if self._noise is None:
            self._noise = Noise(self.seed, parameter.device)
        tensors = (parameter, state["exp_avg"], state["exp_avg_sq"])
        weight, mean, square = (local_tensor(tensor).view(-1) for tensor in tensors)
        gradient = local_tensor(parameter.grad).reshape(-1) if parameter.grad is not None else weight.new_zeros(0)
        offset, size = _shard_offset(parameter), len(self._noise.lanes_L)
        # Chunks are counted in the full tensor; a shard may begin and end inside of one.
        for chunk in range(offset // size, -(-(offset + len(weight)) // size)) if len(weight) else ():
            start, end = max(chunk * size - offset, 0), min((chunk + 1) * size - offset, len(weight))
            lanes = slice(offset + start - chunk * size, offset + end - chunk * size)
            noises = self._noise.draw(f"{settings.step}:{index}:{chunk}", lanes)
            part = slice(start, end)
            update(weight[part], gradient[part], mean[part], square[part], settings, noises)


def update(
    weight_C: Tensor,
    gradient_C: Tensor,
    mean_C: Tensor,
    square_C: Tensor,
    settings: UpdateSettings,
    noises: tuple[Tensor, Tensor],
) -> None:
    """One step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on a chunk, computed in fp32, in place.

    `noises`: those of the weight and of the moments, see `round_stochastically`. The weight is updated with the
    moments before they are rounded.
    """
    beta1, beta2 = settings.betas
    gradient = gradient_C.float()
    mean = mean_C.float().lerp_(gradient, 1.0 - beta1)
    square = square_C.float().mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    # mean / (sqrt(square) / correction + epsilon), with one division less
    correction = math.sqrt(1.0 - beta2**settings.step)
    denominator = square.sqrt().add_(settings.epsilon * correction)
    weight = weight_C.float()
    if settings.weight_decay:
        weight.mul_(1.0 - settings.learning_rate * settings.weight_decay)
    weight.addcdiv_(mean, denominator, value=-settings.learning_rate * correction / (1.0 - beta1**settings.step))
    weight_noise_C, moment_noise_C = noises
    updates = ((weight_C, weight, weight_noise_C), (mean_C, mean, moment_noise_C), (square_C, square, moment_noise_C))
    for target_C, value, noise_C in updates:
        target_C.copy_(round_stochastically(value, noise_C) if target_C.dtype is torch.bfloat16 else value)


def round_stochastically(numbers_C: Tensor, noise_C: Tensor) -> Tensor:
    """Round fp32 numbers to the bf16 value below or above; overwrites `numbers_C`.

    `noise_C`: int32, uniform in 0 to 65535. Added to the bits that are then cut off, it carries into the upper bits
    with the probability that stochastic rounding needs. Values of bf16 are unchanged; finite numbers stay finite
    and others stay as they are.
    """
    lowest, highest = torch.aminmax(numbers_C)
    if lowest.item() >= -BF16_MAX and highest.item() <= BF16_MAX:  # false where there is a NaN
        numbers_C.view(torch.int32).add_(noise_C).bitwise_and_(~_LOW_BITS)
        return numbers_C
    finite_C = round_stochastically(numbers_C.nan_to_num(0.0).clamp_(-BF16_MAX, BF16_MAX), noise_C)
    return torch.where(numbers_C.isfinite(), finite_C, numbers_C)


class Noise:
    """Random numbers by address: 16 bits for each number of a chunk, always the same for a seed.

    Each address multiplies the same random lanes by a factor of its own, adds a summand, and takes the upper half of
    the 32 bits (Dietzfelbinger 1996, "Universal hashing and k-wise independent random variables via integer arithmetic
    without primes"): any two of its numbers are independent, at a fifth of the cost of new random numbers.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        size = CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK
        numbers = torch.empty(size // 2, dtype=torch.int64)
        generator = torch.Generator().manual_seed(seed)
        self.lanes_L = numbers.random_(-(2**63), None, generator=generator).view(torch.int32).to(device)

    def draw(self, address: str, lanes: slice) -> tuple[Tensor, Tensor]:
        """Two independent noise tensors for `lanes` of an address."""
        digest = hashlib.sha256(f"{self.seed}:{address}".encode()).digest()
        factor, summand, other_factor, other_summand = struct.unpack("<4i", digest[:16])
        return self._hash_lanes(factor, summand, lanes), self._hash_lanes(other_factor, other_summand, lanes)

    def _hash_lanes(self, factor: int, summand: int, lanes: slice) -> Tensor:
        hashed = (self.lanes_L[lanes] * (factor | 1)).add_(summand)
        return hashed.bitwise_right_shift_(16).bitwise_and_(_LOW_BITS)


def _shard_offset(parameter: nn.Parameter) -> int:
    """The position of this rank's shard in the full parameter, both flattened."""
    if not isinstance(parameter, DTensor):
        return 0
    mesh, rows = parameter.device_mesh, parameter.shape[0]
    assert parameter.placements == (Shard(0),), "FSDP2 shards by rows"
    rows_per_rank = -(-rows // mesh.size())
    return min(mesh.get_local_rank() * rows_per_rank, rows) * (parameter.numel() // rows)
