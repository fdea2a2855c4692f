"""The engine's own layers give transformers' and PEFT's losses and gradients, and step aside where they do not know."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from architectures.test_forward import LENGTHS, batch_of, gradients, random_rows, reference_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ALL, config_of, network_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.layers.fused_models import build_fused_stack
from luthier.layers.fused_stack import FusedStack
from luthier.layers.module_readers import UnsupportedModuleError
from luthier.weights import model as model_module
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.lora_targets import linear_layer_names
from luthier.weights.model import Model

FAST = ("llama", "mistral", "gemma", "qwen2", "qwen3", "gpt_neox")
FAMILIES = ("llama", "gpt_neox")
FUSED = "Luthier's fused layers"
CPU = torch.device("cpu")


def model_of(network: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Model:
    return Model(network, dtype, CPU)


def adapted(network: PreTrainedModel, dropout: float = 0.0, dtype: torch.dtype = torch.float32, **more: Any) -> Model:
    """With an adapter on every linear layer that is not at its start, where half of its gradients are zero."""
    network.requires_grad_(False)
    model = attach_adapter(
        model_of(network, dtype),
        Adapter(r=3, alpha=5, dropout=dropout, target_modules=linear_layer_names(network), **more),
        seed=0,
    )
    torch.manual_seed(1)
    for parameter in model.trainable_parameters().values():
        parameter.data.normal_(0, 0.1)
    return model


def on_transformers_layers(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(model, "fused_stack", lambda: UnsupportedModuleError("asked for"))
    return model


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Every gradient, by its distance relative to its size."""
    assert found.keys() == expected.keys()
    assert len(found) > 1
    largest = max(value.norm().item() for value in expected.values())
    for key, value in expected.items():  # a key's bias has no gradient but rounding: all scores of a query move alike
        distance = (found[key] - value).norm().item()
        assert distance <= tolerance * max(value.norm().item(), 3e-3 * largest), key


@pytest.mark.parametrize("name", ALL)
def test_the_run_is_told_which_path_it_takes(name: str) -> None:
    path = model_of(network_of(name)).describe_layers()
    assert (path == FUSED) == (name in FAST)
    assert path == FUSED or path.startswith("transformers' layers (")


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("lora", [False, True])
def test_loss_and_every_gradient_are_hugging_faces(name: str, lora: bool) -> None:
    network, rows = network_of(name), random_rows([*LENGTHS, 150])
    model = adapted(network) if lora else model_of(network)
    reference = reference_loss(model.hf_model, rows)
    reference.backward()
    expected = gradients(model.network)
    assert model.describe_layers() == FUSED
    loss = model.loss(batch_of(network, rows, packed=True))
    loss.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert_same(gradients(model.network), expected)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=4), st.sampled_from(FAST), st.sampled_from([1, 2, 4]),
    st.booleans(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_odd_shapes(
    lengths: list[int], name: str, key_heads: int, tied: bool, bias: bool, lora: bool, parallel: bool
) -> None:
    config = config_of(name)
    config.use_parallel_residual = parallel
    config.num_key_value_heads, config.tie_word_embeddings = key_heads, tied
    config.attention_bias = config.mlp_bias = bias
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:  # biases and norms are born all alike
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    rows = random_rows(lengths)
    rows.append((rows[0][0][:1], rows[0][1][:1] & False))  # a row of one token carries no loss
    model = adapted(network) if lora else model_of(network)
    reference = reference_loss(model.hf_model, rows[:-1])
    reference.backward()
    expected = gradients(model.network)
    assert model.describe_layers() == FUSED
    loss = model.loss(batch_of(network, rows, packed=True))
    loss.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert_same(gradients(model.network), expected, 3e-5)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("lora", [False, True])
def test_bf16_errs_no_more_than_hugging_faces_autocast(name: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient(model: Model) -> Tensor:
        model.loss(batch).backward()
        return torch.cat([value.flatten() for value in gradients(model.network).values()])

    def build(dtype: torch.dtype) -> Model:
        fresh = copy.deepcopy(network)
        return adapted(nn.Module.to(fresh, dtype), dtype=dtype) if lora else model_of(fresh, dtype)

    network = network_of(name)
    network.bfloat16().float()  # so that both types start from the same weights
    batch = batch_of(network, random_rows([40, 60, 33, 90]), packed=True)
    exact = gradient(on_transformers_layers(build(torch.float32), monkeypatch))
    plain = gradient(on_transformers_layers(build(torch.bfloat16), monkeypatch))
    own = build(torch.bfloat16)
    assert own.describe_layers() == FUSED
    # One draw of rounding errors against another: they differ by some percent of themselves.
    assert (gradient(own) - exact).norm() <= 1.15 * (plain - exact).norm()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_activations_drop_the_same(name: str, dropout: float) -> None:
    model = adapted(network_of(name), dropout)
    batch = batch_of(model.hf_model, random_rows(LENGTHS), packed=True)
    model.network.train()

    def found(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model.loss(batch).backward()
        return gradients(model.network)

    kept, other = found(0), found(1)
    model.enable_activation_checkpointing()
    assert model.describe_layers() == FUSED
    assert_same(found(0), kept, 1e-6)
    assert any(not torch.equal(kept[key], other[key]) for key in kept) == bool(dropout)
    model.network.eval()
    assert all(torch.equal(a, b) for a, b in zip(found(0).values(), found(1).values(), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_under_dropout_is_that_of_the_loss(name: str) -> None:
    """Along its own direction, with the same masks drawn each time."""
    model = adapted(network_of(name), 0.3)
    batch = batch_of(model.hf_model, random_rows(LENGTHS), packed=True)
    model.network.train()

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model.loss(batch)

    loss().backward()
    found = {
        name: parameter.grad for name, parameter in model.trainable_parameters().items() if parameter.grad is not None
    }
    assert found.keys() == model.trainable_parameters().keys()
    size = torch.sqrt(sum((grad.square().sum() for grad in found.values()), torch.zeros(())))
    ends = []
    for sign in (1, -2):
        for name, parameter in model.trainable_parameters().items():
            parameter.data.add_(found[name] / size, alpha=sign * 3e-3)
        ends.append(loss().item())
    assert (ends[0] - ends[1]) / 6e-3 == pytest.approx(size.item(), rel=2e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adapter_can_be_switched_off(name: str) -> None:
    network = network_of(name)
    batch = batch_of(network, random_rows(LENGTHS), packed=True)
    base = model_of(network).scores(batch).loss_N
    model = adapted(network)
    assert not torch.allclose(model.scores(batch).loss_N, base)
    with cast(Any, model.network).disable_adapter():
        assert model.describe_layers() == FUSED
        torch.testing.assert_close(model.scores(batch).loss_N, base)


def layer_of(model: Model, index: int) -> Any:
    layers: Any = model.hf_model.base_model.layers
    return layers[index]


def hook(model: Model) -> None:
    layer_of(model, 1).mlp.register_forward_hook(lambda *_: None)


def gated_off(model: Model) -> None:
    layer_of(model, 0).mlp.act_fn = nn.ReLU()


def other_weights(model: Model) -> None:
    class Sharded(nn.Parameter):
        """Stands for any weight that is no plain tensor."""

    linear = layer_of(model, 0).mlp.up_proj
    linear.weight = Sharded(linear.weight.data)


def other_norm(model: Model) -> None:
    layer_of(model, 0).input_layernorm = nn.LayerNorm(32)


def attention_dropout(model: Model) -> None:
    layer_of(model, 0).self_attn.attention_dropout = 0.1
    model.network.train()


@pytest.mark.parametrize(
    ("change", "said"),
    [(hook, "a hook at layers.1.mlp"), (gated_off, "the activation ReLU"), (other_weights, "a layer of Linear"),
     (other_norm, "the norm LayerNorm"), (attention_dropout, "dropout in the attention")],
)  # fmt: skip
def test_it_steps_aside(change: Any, said: str) -> None:
    model = model_of(network_of("llama"))
    change(model)
    assert model.describe_layers() == f"transformers' layers ({said})"


def other_act(model: Model) -> None:
    layer_of(model, 0).mlp.act = nn.ReLU()


def norm_without_bias(model: Model) -> None:
    layer_of(model, 0).input_layernorm = nn.LayerNorm(32, bias=False)


def one_layer_drops(model: Model) -> None:
    layer_of(model, 1).post_mlp_dropout.p = 0.1
    model.network.train()


def the_embedding_drops(model: Model) -> None:
    network: Any = model.hf_model.base_model
    network.emb_dropout.p = 0.1
    model.network.train()


def neox_attention_drops(model: Model) -> None:
    layer_of(model, 0).attention.attention_dropout = 0.1
    model.network.train()


def one_part_more(model: Model) -> None:
    layer_of(model, 0).attention.q_norm = nn.LayerNorm(8)


@pytest.mark.parametrize(
    ("change", "said"),
    [(hook, "a hook at layers.1.mlp"), (other_act, "the activation ReLU"),
     (norm_without_bias, "the norm LayerNorm"), (one_layer_drops, "dropout behind attention or MLP"),
     (the_embedding_drops, "dropout behind the embedding"), (neox_attention_drops, "dropout in the attention"),
     (one_part_more, "the parts of the attention")],
)  # fmt: skip
def test_it_steps_aside_for_parts_of_gpt_neox(change: Any, said: str) -> None:
    model = model_of(network_of("gpt_neox"))
    change(model)
    assert model.describe_layers() == f"transformers' layers ({said})"


def test_dropouts_of_a_model_that_does_not_train_do_not_count() -> None:
    model = model_of(network_of("gpt_neox", dropout=0.1))
    assert model.describe_layers() == FUSED
    model.network.train()
    assert model.describe_layers() == "transformers' layers (dropout behind the embedding)"


def test_it_steps_aside_for_dora_for_fp16_and_for_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        adapted(network_of("llama"), use_dora=True).describe_layers()
        == "transformers' layers (an adapter that is not plain LoRA)"
    )
    assert (
        model_of(network_of("llama"), torch.float16).describe_layers()
        == "transformers' layers (computing in torch.float16)"
    )
    model = model_of(network_of("llama"))
    padded = batch_of(model.hf_model, random_rows(LENGTHS), packed=False)
    monkeypatch.setattr(model, "fused_stack", lambda: pytest.fail("asked for padded rows"))
    assert torch.isfinite(model.loss(padded))


def test_support_is_decided_once_for_each_state(monkeypatch: pytest.MonkeyPatch) -> None:
    decisions: list[bool] = []

    def build(hf_model: Any, dtype: torch.dtype) -> Any:
        decisions.append(hf_model.training)
        return build_fused_stack(hf_model, dtype)

    monkeypatch.setattr(model_module, "build_fused_stack", build)
    model = adapted(network_of("llama"), 0.3)
    batch = batch_of(model.hf_model, random_rows(LENGTHS), packed=True)
    for training in (True, False, True, False):
        model.network.train(training)
        for _ in range(3):
            model.loss(batch)
    assert sorted(decisions) == [False, True]
    scores = model.scores(batch).loss_N
    for _ in range(2):
        with cast(Any, model.network).disable_adapter():
            assert not torch.equal(model.scores(batch).loss_N, scores)
        assert torch.equal(model.scores(batch).loss_N, scores)
    assert len(decisions) == 3
    model.network.train()
    model.enable_activation_checkpointing()
    stack = model.fused_stack()
    assert isinstance(stack, FusedStack)
    assert all(layer.checkpointed for layer in stack.layers)
    assert len(decisions) == 4
