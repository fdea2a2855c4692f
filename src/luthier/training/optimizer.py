"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the trainable parameters, and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from luthier.errors import CheckpointError
from luthier.training.config import OptimizerSettings


def build_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: norms and biases are not pulled to zero."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values()),
    )


def learning_rate(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of `step` (counted from 0) in a run of `total_steps`."""
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * total_steps)
    if settings.scheduler != "constant" and step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    shape = {
        "constant": 1.0,
        "constant_with_warmup": 1.0,
        "linear": max(0.0, 1.0 - progress),
        "cosine": 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))),
    }
    return settings.learning_rate * shape[settings.scheduler]


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
    """Put stored state back; CheckpointError when it is of other parameters."""
    for stored, value in tensors.items():
        name, _, moment = stored.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state for {name!r}, which this run does not train")
        parameter = parameters[name]
        # The fused kernels want their step counter beside the parameter.
        optimizer.state[parameter][moment] = value.to(parameter.device)
