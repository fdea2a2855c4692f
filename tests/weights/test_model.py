"""The model as the engine uses it, against Hugging Face's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from tiny_models import ARCHITECTURES, network_of
from token_rows import loss_alone, write_store
from transformers import GPT2Config, GPT2LMHeadModel

from luthier.data.batches import Layout, collate
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.lora_targets import linear_layer_names
from luthier.weights.model import Model

CPU = torch.device("cpu")


def adapted(architecture: str) -> Model:
    model = Model(network_of(architecture), torch.float32, CPU)
    model = attach_adapter(
        model, Adapter(r=2, alpha=16, dropout=0.0, target_modules=linear_layer_names(model.hf_model)[:1]), seed=0
    )
    torch.manual_seed(1)
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_is_hugging_faces_own(tmp_path: Path, architecture: str, packed: bool) -> None:
    network = network_of(architecture)
    store = write_store(tmp_path, [12, 5, 20])
    expected = sum(loss_alone(network, store, row)[0] for row in range(3))
    found = Model(network, torch.float32, CPU).loss(collate(store, [2, 0, 1], Layout(packed, 3)))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert found.requires_grad


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_position_by_position(tmp_path: Path, architecture: str) -> None:
    network = network_of(architecture)
    store = write_store(tmp_path, [20])
    batch = collate(store, [0], Layout(True, 3))
    with torch.no_grad():
        logits = network(input_ids=batch.input_ids_BT, use_cache=False).logits[0, batch.positions_N]
    found = Model(network, torch.float32, CPU).scores(batch)
    torch.testing.assert_close(found.loss_N, F.cross_entropy(logits, batch.labels_N, reduction="none"))
    assert torch.equal(found.correct_N, logits.argmax(-1) == batch.labels_N)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_can_be_switched_off(tmp_path: Path, architecture: str) -> None:
    store = write_store(tmp_path, [20, 7])
    batch = collate(store, [0, 1], Layout(True, 3))
    base = Model(network_of(architecture), torch.float32, CPU).scores(batch).loss_N
    model = adapted(architecture)
    assert not torch.allclose(model.scores(batch).loss_N, base)
    with cast(Any, model.network).disable_adapter():
        torch.testing.assert_close(model.scores(batch).loss_N, base)
    assert not torch.allclose(model.scores(batch).loss_N, base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_adapter_trains(tmp_path: Path, architecture: str) -> None:
    model = adapted(architecture)
    model.loss(collate(write_store(tmp_path, [9]), [0], Layout(True, 3))).backward()
    assert all(
        "lora_" in name and parameter.grad is not None for name, parameter in model.trainable_parameters().items()
    )
    assert model.has_adapter
    assert type(model.hf_model) is type(network_of(architecture))
    others = [parameter for name, parameter in model.network.named_parameters() if "lora_" not in name]
    assert all(parameter.grad is None for parameter in others)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_facts_of_an_architecture(architecture: str) -> None:
    model = Model(network_of(architecture, positions=96), torch.float32, CPU)
    assert (model.context_length, model.supports_packing, model.has_adapter) == (96, True, False)
    assert len(model.trainable_parameters()) == len(list(model.network.parameters()))


def test_an_architecture_that_was_not_proved_does_not_pack() -> None:
    class Other(GPT2LMHeadModel):
        pass

    config: Any = GPT2Config(n_embd=8, n_layer=1, n_head=1, n_positions=8, vocab_size=8)
    assert not Model(Other(config), torch.float32, CPU).supports_packing


def test_the_attention_asked_for_is_put_back(tmp_path: Path) -> None:
    model = Model(network_of("llama"), torch.float32, CPU)
    before = model.hf_model.config._attn_implementation
    model.scores(collate(write_store(tmp_path, [5, 4]), [0, 1], Layout(True, 3)))
    assert model.hf_model.config._attn_implementation == before


def test_bf16_computes_low_and_keeps_fp32_weights(tmp_path: Path) -> None:
    network = network_of("llama")
    batch = collate(write_store(tmp_path, [20, 9]), [0, 1], Layout(True, 3))
    exact = Model(network, torch.float32, CPU).loss(batch).item()
    low = Model(network, torch.bfloat16, CPU).loss(batch)
    assert low.dtype is torch.float32
    assert low.item() != exact
    assert low.item() == pytest.approx(exact, rel=1e-2)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
