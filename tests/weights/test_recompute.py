"""Recomputed activations give the gradients of kept ones: the layers attend in the backward pass as in the forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, network_of
from token_rows import write_store
from torch import Tensor

from luthier.data.batches import Layout, collate
from luthier.layers.batch import Batch
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.lora_targets import linear_layer_names
from luthier.weights.model import Model


def build(architecture: str, lora: bool) -> Model:
    model = Model(network_of(architecture), torch.float32, torch.device("cpu"))
    if lora:
        model = attach_adapter(
            model, Adapter(r=2, alpha=4, dropout=0.0, target_modules=linear_layer_names(model.hf_model)), seed=0
        )
    model.network.train()
    return model


def gradients(model: Model, batch: Batch) -> dict[str, Tensor]:
    model.loss(batch).backward()
    return {name: value.grad.clone() for name, value in model.trainable_parameters().items() if value.grad is not None}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradients_are_the_same(architecture: str, lora: bool, packed: bool, tmp_path: Path) -> None:
    batch = collate(write_store(tmp_path, [12, 5, 20]), [2, 0, 1], Layout(packed, 3))
    expected = gradients(build(architecture, lora), batch)
    model = build(architecture, lora)
    model.enable_activation_checkpointing()
    layers = [module for module in model.hf_model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert len(layers) >= 2
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    assert any(value.abs().max() > 0 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
