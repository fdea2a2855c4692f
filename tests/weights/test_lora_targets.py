"""Which layers an adapter goes to: found by running the loaded model, whatever its class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tiny_models import ALL, ARCHITECTURES, network_of
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MambaConfig, MambaForCausalLM

from luthier.errors import SettingError
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.lora_targets import (
    LoraTargets,
    expert_parameters,
    linear_layer_names,
    observe_linear_layers,
    resolve_lora_targets,
)
from luthier.weights.model import Model

LINEAR = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
IDS = torch.arange(4, 14)[None]


def model_of(architecture: str, network: Any = None, dtype: torch.dtype = torch.float32) -> Model:
    network = network or network_of(architecture)
    network.requires_grad_(False)
    return Model(network.to(dtype), dtype, torch.device("cpu"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_layers_but_the_output_head(architecture: str) -> None:
    targets = resolve_lora_targets("all-linear", model_of(architecture))
    assert targets == LoraTargets(LINEAR[architecture])
    assert linear_layer_names(network_of(architecture)) == LINEAR[architecture]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ALL)
def test_a_model_outside_the_catalogue_has_all_linear_layers_adapted(architecture: str, dtype: torch.dtype) -> None:
    model = model_of(architecture, dtype=dtype)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    every = linear_layer_names(model.hf_model)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert set(resolve_lora_targets("default", model).modules) == set(every)
    assert torch.equal(torch.rand(2), expected)  # the observation leaves random numbers and model as they were
    assert not model.network.training
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert not any(module._forward_hooks for module in model.network.modules())


def test_the_catalogues_targets_come_first() -> None:
    model = model_of("llama")
    assert resolve_lora_targets("default", model, ("o_proj",)) == LoraTargets(("o_proj",))
    assert resolve_lora_targets("all-linear", model, ("o_proj",)) == LoraTargets(LINEAR["llama"])
    assert resolve_lora_targets("default", model, ("no_such",)) == LoraTargets(LINEAR["llama"])


@pytest.mark.parametrize(
    ("setting", "modules"),
    [
        ("q_proj,v_proj", ("q_proj", "v_proj")),
        (" q_proj , v_proj ", ("q_proj", "v_proj")),
        ("q_proj,,v_proj,", ("q_proj", "v_proj")),
        ("mlp.up_proj", ("up_proj",)),
        ("layers.1.self_attn.q_proj", ("1.self_attn.q_proj",)),
        ("all-linear,q_proj", LINEAR["llama"]),
    ],
)
def test_names(setting: str, modules: tuple[str, ...]) -> None:
    assert resolve_lora_targets(setting, model_of("llama"), ("o_proj",)) == LoraTargets(modules)


@pytest.mark.parametrize(
    ("architecture", "setting", "message"),
    [
        ("llama", "q_porj", "did you mean 'q_proj'?"),
        ("llama", "q_proj,w_proj", "lora_target_modules=w_proj: LlamaForCausalLM has no such linear layer"),
        ("llama", "zzzz", "it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or use all-linear"),
        ("llama", "input_layernorm", "no such linear layer"),
        ("llama", "proj", "no such linear layer"),
        ("llama", "lm_head", "no such linear layer"),
        ("gpt_neox", "embed_out", "no such linear layer"),
        ("gpt2", "lm_head", "no such linear layer"),
        ("gpt2", "q_proj", "it has c_attn, c_proj, c_fc, or use all-linear"),
        ("llama", ",", "no layer is named"),
        ("llama", "experts", "no such linear layer"),
        ("t5", "lm_head", "no such linear layer; it has q, k, v, o, wi_0, wi_1, wo, or use all-linear"),
        ("mixtral", "gate", "it has q_proj, k_proj, v_proj, o_proj, experts, or use all-linear"),
        ("mixtral", "expert", "did you mean 'experts'?"),
    ],
)
def test_what_is_no_linear_layer_is_refused(architecture: str, setting: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        resolve_lora_targets(setting, model_of(architecture))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_linear_leaves_experts_and_router_alone() -> None:
    model = model_of("mixtral")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    experts = ("experts.gate_up_proj", "experts.down_proj")
    assert resolve_lora_targets("all-linear", model) == LoraTargets(attention)
    assert resolve_lora_targets("default", model) == LoraTargets(attention)
    assert resolve_lora_targets("default", model, ("q_proj", "experts")) == LoraTargets(("q_proj",), experts)
    assert resolve_lora_targets("q_proj, experts", model) == LoraTargets(("q_proj",), experts)
    assert resolve_lora_targets("all-linear,experts", model) == LoraTargets(attention, experts)
    assert expert_parameters(model.hf_model) == experts
    assert expert_parameters(network_of("llama")) == ()
    assert str(LoraTargets(("q_proj",), experts)) == "q_proj, experts.gate_up_proj, experts.down_proj"


# Layers whose adapter would not train


class ReadsTheWeight(nn.Linear):
    """Multiplies by its own weight only when called; the caller below never calls it."""


class AddsOne(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class ReturnsTwo(nn.Linear):
    def forward(self, input: Tensor) -> Any:
        return super().forward(input), None


def with_layer(layer: nn.Linear, call: Any) -> Model:
    """A Llama whose first layer's q_proj is replaced, beside its own, by a layer that `call` uses."""
    network: Any = network_of("llama")
    attention = network.model.layers[0].self_attn
    attention.extra = layer
    own = attention.q_proj

    class Both(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            total: Tensor = own(hidden) + call(layer, hidden)
            return total

    attention.q_proj = Both()
    attention.q_proj.own = own
    return model_of("llama", network)


@pytest.mark.parametrize(
    ("layer", "call", "reason"),
    [
        (ReadsTheWeight, lambda layer, hidden: F.linear(hidden, layer.weight), "does not call this layer"),
        (AddsOne, lambda layer, hidden: layer(hidden), "computes more than a matrix product"),
        (ReturnsTwo, lambda layer, hidden: layer(hidden)[0], "computes more than a matrix product"),
        (nn.Linear, lambda layer, hidden: layer(hidden).detach(), "passes no gradient"),
    ],
)
def test_a_layer_whose_adapter_would_not_train_is_left_out(layer: type[nn.Linear], call: Any, reason: str) -> None:
    model = with_layer(layer(32, 32, bias=False), call)
    observed = observe_linear_layers(model)
    assert reason in str(observed["model.layers.0.self_attn.extra"])
    assert [name for name, why in observed.items() if why] == ["model.layers.0.self_attn.extra"]
    assert "extra" not in str(resolve_lora_targets("all-linear", model))
    with pytest.raises(SettingError, match=f"lora_target_modules=extra: LlamaForCausalLM {reason}"):
        resolve_lora_targets("extra", model)


def test_a_name_that_only_some_layers_can_have_adapted_is_written_out() -> None:
    """Names are ends of module names: the layer that is left out must not be found by them."""
    network: Any = network_of("llama")
    network.model.layers[1].mlp.up_proj.__class__ = AddsOne
    model = model_of("llama", network)
    targets = resolve_lora_targets("up_proj,gate_proj", model)
    assert targets == LoraTargets(("0.mlp.up_proj", "gate_proj"))
    assert str(targets) == "*.mlp.up_proj, gate_proj"
    adapted = attach_adapter(
        model, Adapter(r=2, alpha=4, dropout=0.0, target_modules=targets.modules), 0
    ).trainable_parameters()
    assert sorted({name.split(".lora_")[0].split("layers.")[1] for name in adapted}) == [
        "0.mlp.gate_proj", "0.mlp.up_proj", "1.mlp.gate_proj",
    ]  # fmt: skip


def test_state_space_layers_have_their_input_adapted() -> None:
    """Kernels read the weights of x_proj, dt_proj and out_proj without calling these layers."""
    config = MambaConfig(vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = model_of("mamba", MambaForCausalLM(config))
    assert resolve_lora_targets("all-linear", model) == LoraTargets(("in_proj",))
    with pytest.raises(SettingError, match="out_proj: MambaForCausalLM reads this layer's weight in kernels"):
        resolve_lora_targets("out_proj", model)


def test_dense_layers_that_peft_takes_for_experts_are_named_by_their_weights() -> None:
    """PEFT would adapt the experts for the names gate_proj, up_proj and down_proj, which fails with dropout."""
    config = DeepseekV3Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        first_k_dense_replace=1,
    )  # fmt: skip
    model = model_of("deepseek_v3", DeepseekV3ForCausalLM(config))
    targets = resolve_lora_targets("all-linear", model)
    assert targets == LoraTargets(
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        ("gate_proj.weight", "up_proj.weight", "down_proj.weight"),
    )
    assert str(targets).endswith("o_proj, gate_proj, up_proj, down_proj")
    assert expert_parameters(model.hf_model) == ("experts.gate_up_proj", "experts.down_proj")
    with pytest.raises(ValueError, match="does not work with lora_dropout"):  # no longer? remove `_is_reserved`
        get_peft_model(model.hf_model, LoraConfig(target_modules=["down_proj"], lora_dropout=0.1))
