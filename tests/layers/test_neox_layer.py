"""A layer of the GPT-NeoX family and its gradients are those of transformers' own, with every part trained or held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer, GPTNeoXRotaryEmbedding

from luthier.layers.module_readers import ModuleReaders, read_layer_norm, read_linear
from luthier.layers.neox_layer import NeoxLayer
from luthier.layers.rope import RotaryAngles
from luthier.layers.row_attention import AttentionSpec, row_attention

HEADS = 2


def config_of(head_size: int, share: float, parallel: bool, bias: bool) -> GPTNeoXConfig:
    config = GPTNeoXConfig(
        hidden_size=HEADS * head_size, intermediate_size=12, num_hidden_layers=1, num_attention_heads=HEADS,
        vocab_size=8, hidden_act="gelu", use_parallel_residual=parallel, attention_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share},
    )  # fmt: skip
    config._attn_implementation = "eager"
    return config


def layer_of(plain: GPTNeoXLayer) -> NeoxLayer:
    return NeoxLayer(
        norm=read_layer_norm(plain.input_layernorm),
        qkv=read_linear(plain.attention.query_key_value),
        dense=read_linear(plain.attention.dense),
        mlp_norm=read_layer_norm(plain.post_attention_layernorm),
        up=read_linear(plain.mlp.dense_h_to_4h),
        down=read_linear(plain.mlp.dense_4h_to_h),
        activation=ModuleReaders().activation(plain.mlp.act),
        head_size=plain.attention.head_size,
        scale=plain.attention.scaling,
        parallel=plain.use_parallel_residual,
        checkpointed=False,
    )


def built(config: GPTNeoXConfig, tokens: int) -> tuple[GPTNeoXLayer, tuple[Tensor, Tensor]]:
    plain = GPTNeoXLayer(config, 0)
    for parameter in plain.parameters():
        parameter.data.normal_(0, 0.5)
    rotary = GPTNeoXRotaryEmbedding(config)
    return plain, rotary(torch.empty(1), torch.arange(tokens)[None])


def plain_output(plain: GPTNeoXLayer, x_TD: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    mask = torch.full((len(x_TD), len(x_TD)), float("-inf")).triu(1)
    found: Tensor = plain(x_TD[None], attention_mask=mask, position_embeddings=positions)[0]
    return found


def own_output(layer: NeoxLayer, x_TD: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    q_THD, k_THD, v_THD, same_TD = layer.project_qkv(x_TD, RotaryAngles.from_cos_sin(*positions), torch.float32)
    attended = row_attention(
        q_THD, k_THD, v_THD, AttentionSpec(lengths=(len(x_TD),), scale=layer.scale, window=layer.window)
    )
    return layer.apply_output_and_mlp(attended, same_TD, torch.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 3), st.sampled_from([0.25, 0.5, 1.0]), st.booleans(), st.booleans(),
    st.sets(st.integers(0, 11)), st.booleans(),
)  # fmt: skip
def test_equals_the_plain_layer(
    tokens: int, size: int, share: float, parallel: bool, bias: bool, held: set[int], wants_x: bool
) -> None:
    torch.manual_seed(tokens + size)
    plain, positions = built(config_of(8 * size, share, parallel, bias), tokens)
    assert positions[0].shape[-1] == share * 8 * size
    for place, parameter in enumerate(plain.parameters()):
        parameter.requires_grad_(place not in held)
    x = torch.randn(tokens, 16 * size, requires_grad=wants_x)
    trained = [tensor for tensor in (x, *plain.parameters()) if tensor.requires_grad]
    expected, found = plain_output(plain, x, positions), own_output(layer_of(plain), x, positions)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.requires_grad == bool(trained)
    if trained:
        grad = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, trained, grad)
        got = torch.autograd.grad(found, trained, grad)
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_laid_out_it_gives_the_same(parallel: bool, packed: bool) -> None:
    torch.manual_seed(0)
    plain, positions = built(config_of(8, 0.25, parallel, True), 7)
    layer, x = layer_of(plain), torch.randn(7, 16)
    laid = layer.for_inference(torch.float32, packed)
    with torch.no_grad():
        *qkv, _ = layer.project_qkv(x, RotaryAngles.from_cos_sin(*positions), torch.float32)
        found = laid.project_qkv(x, RotaryAngles.from_cos_sin(*positions))
        torch.testing.assert_close(found, tuple(qkv), rtol=1e-5, atol=1e-5)
        assert all(tensor.is_contiguous() for tensor in found)
        attended = torch.randn_like(qkv[0])
        torch.testing.assert_close(
            laid.apply_output_and_mlp(attended, x),
            layer.apply_output_and_mlp(attended, x, torch.float32),
            rtol=1e-5,
            atol=1e-5,
        )


def test_of_a_pass_only_inputs_of_products_are_kept() -> None:
    """x, q, k, v, what attention found and the MLP's inner values, and none of the norms or activations."""
    torch.manual_seed(0)
    plain, positions = built(config_of(8, 0.25, True, True), 6)
    layer, x = layer_of(plain), torch.randn(6, 16, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        own_output(layer, x, positions).sum().backward()
    assert sum(kept.values()) == 6 * (5 * 16 + 12)
