"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the trainable parameters, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.errors import CheckpointError
from luthier.training.bf16_adamw import CPU_CHUNK, Bf16AdamW
from luthier.training.config import OptimizerSettings
from luthier.training.process_group import ProcessGroup
from luthier.training.tensor_file import distribute_like, local_tensor


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings, seed: int = 0
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only, not on norms and biases. `seed` seeds the rounding to bf16."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.in_bf16:
        return Bf16AdamW(groups, settings.learning_rate, settings.betas, settings.epsilon, seed)
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values()),
    )


def learning_rate(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """The learning rate of `step` (counted from 0) in a run of `total_steps`.

        warm-up            decay                                    constant_steps
        0 ... peak    peak ... minimum (cosine or linear)      minimum ... minimum

    CosineAnnealing is NeMo's name for the cosine. The constant schedules stay at the peak to the end.
    """
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * total_steps)
    if settings.scheduler != "constant" and step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.scheduler in ("constant", "constant_with_warmup"):
        return settings.learning_rate
    decay = total_steps - settings.constant_steps - warmup
    progress = min(1.0, (step - warmup) / decay) if decay > 0 else 1.0
    factor = 1.0 - progress if settings.scheduler == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.min_learning_rate + (settings.learning_rate - settings.min_learning_rate) * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``<parameter>/<moment>``."""
    return {
        f"{name}/{moment}": value
        for name, parameter in parameters.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state from named tensors; CheckpointError when they belong to other parameters."""
    for stored, value in tensors.items():
        name, _, moment = stored.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state for {name!r}, which this run does not train")
        parameter = parameters[name]
        # The fused kernels need their step counter on the parameter's device.
        optimizer.state[parameter][moment] = distribute_like(value, parameter)


def clip_gradient(parameters: Sequence[nn.Parameter], max_norm: float, group: ProcessGroup) -> float:
    """Clip the gradient, which may be sharded over the ranks, to `max_norm`; return its norm before clipping.

    It is not clipped when `max_norm` is 0 or the norm is not finite.
    """
    gradients = [local_tensor(parameter.grad) for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([_bf16_norm(grad) if grad.dtype is torch.bfloat16 else grad for grad in gradients])
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        (squares,) = group.all_reduce_values(norm.item() ** 2)
        norm = torch.tensor(math.sqrt(squares) if squares >= 0 else squares, device=norm.device)
    total_norm = norm.item()
    if max_norm > 0 and math.isfinite(total_norm) and gradients:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return total_norm


def _bf16_norm(gradient: Tensor) -> Tensor:
    """The norm in fp32 of a gradient in bf16; torch's would be rounded to bf16, an error of up to 0.4 %."""
    chunks = gradient.flatten().split(CPU_CHUNK if gradient.device.type == "cpu" else max(gradient.numel(), 1))
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(chunk.float()) for chunk in chunks]))
    return norm
