"""What a run is told it will need, counted by hand."""

from __future__ import annotations

import pytest
import torch
from tiny_models import network_of

from luthier.training.bf16_adamw import Bf16AdamW
from luthier.training.capacity import estimate_resources
from luthier.training.config import OptimizerSettings
from luthier.training.optimizer import build_optimizer, optimizer_tensors
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.lora_targets import linear_layer_names
from luthier.weights.model import Model

CPU = torch.device("cpu")
SETTINGS = OptimizerSettings(
    learning_rate=1e-3, scheduler="constant", warmup_ratio=0.0, warmup_steps=0, weight_decay=0.0, betas=(0.9, 0.999),
    epsilon=1e-8, max_grad_norm=0.0, min_learning_rate=0.0, constant_steps=0, label_smoothing=0.0,
)  # fmt: skip


@pytest.mark.parametrize(("kept", "a_parameter"), [(torch.float32, 16), (torch.bfloat16, 8)])
def test_all_weights(kept: torch.dtype, a_parameter: int) -> None:
    """Weight, gradient and two moments, each of the weight's type; checkpoints leave out the gradient."""
    network = network_of("llama")
    model = Model(network.bfloat16() if kept is torch.bfloat16 else network, torch.bfloat16, CPU)
    count = sum(parameter.numel() for parameter in model.network.parameters())
    need = estimate_resources(model, checkpoints_kept=2)
    assert need.memory == a_parameter * count
    assert need.checkpoints == 4 * (a_parameter * 3 // 4) * count
    assert need.artifact == 2 * 2 * count


def test_weights_in_bf16_take_what_is_forecast() -> None:
    model = Model(network_of("llama").bfloat16(), torch.bfloat16, CPU)
    optimizer = build_optimizer(model.trainable_parameters(), SETTINGS)
    optimizer = Bf16AdamW(optimizer.param_groups, 1e-3, (0.9, 0.999), 1e-8, seed=0)
    for parameter in model.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = [
        *model.trainable_parameters().values(),
        *optimizer_tensors(optimizer, model.trainable_parameters()).values(),
    ]
    held += [parameter.grad for parameter in model.network.parameters() if parameter.grad is not None]
    found = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor.ndim)
    assert found == estimate_resources(model, checkpoints_kept=1).memory


def test_an_adapter_on_weights_in_bf16() -> None:
    """The base as it is held; of the adapter, in fp32, 16 bytes a parameter."""
    base = network_of("llama").bfloat16().requires_grad_(False)
    frozen = sum(parameter.numel() for parameter in base.parameters())
    model = attach_adapter(
        Model(base, torch.bfloat16, CPU),
        Adapter(r=4, alpha=8, dropout=0.0, target_modules=linear_layer_names(base)),
        seed=0,
    )
    trained = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    need = estimate_resources(model, checkpoints_kept=1)
    assert need.memory == 2 * frozen + 16 * trained
    assert need.checkpoints == 3 * 12 * trained
