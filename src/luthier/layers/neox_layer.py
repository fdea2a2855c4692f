"""A decoder layer of the GPT-NeoX family, with manual backward passes.

    x --norm--query_key_value--rope-->  attention  --dense--> + y        y: x, if sequential; else the MLP's output
      \\__________ NeoxQkv _________/   row_attention  \\_ Output _/
      saves x                          q, k, v          attended

    x --norm--up--act--down--> + x                                       x: the attention's output, if sequential
      \\__________ NeoxMlp _________/
      saves x, up

Attention and MLP run in parallel on the same x (GPT-J's form), or sequentially. The backward pass recomputes norms and
activations. fused_models.py builds the layer from transformers' modules. The reference is transformers' own layer
(tests/layers/test_neox_layer.py, tests/architectures/test_fused_layers.py).

Shapes: T packed tokens, D hidden size (of a head: head size), H heads, O = 3 * H * head size, I intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.layers.decoder_layer import Grads, OutputProjection
from luthier.layers.layer_norm import LayerNorm, layer_norm, layer_norm_backward
from luthier.layers.linear import Linear, SavedForBackward, linear, linear_backward
from luthier.layers.projection import Projection
from luthier.layers.rope import RotaryAngles, rotate_leading_
from luthier.layers.swiglu import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxLayer:
    """A `FusedLayer` of the GPT-NeoX family. `parallel`: attention and MLP read the same input."""

    norm: LayerNorm
    qkv: Linear
    dense: Linear
    mlp_norm: LayerNorm
    up: Linear
    down: Linear
    activation: Activation
    head_size: int
    scale: float
    parallel: bool
    checkpointed: bool
    window: None = None

    @property
    def linear_layers(self) -> tuple[Linear, ...]:
        return self.qkv, self.dense, self.up, self.down

    def project_qkv(
        self, x_TD: Tensor, angles: RotaryAngles, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return NeoxQkv(norm=self.norm, qkv=self.qkv, head_size=self.head_size, angles=angles, dtype=dtype)(x_TD)

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        output = OutputProjection(self.dense, dtype)
        mlp = NeoxMlp(norm=self.mlp_norm, up=self.up, down=self.down, activation=self.activation, dtype=dtype)
        return output(attended_THD, mlp(x_TD)) if self.parallel else mlp(output(attended_THD, x_TD))

    def for_inference(self, dtype: torch.dtype, packed: bool) -> NeoxInferenceLayer:
        return NeoxInferenceLayer(self, dtype, packed)


class NeoxInferenceLayer:
    """The layer with its weights prepared for inference (fused_stack.py's `InferenceLayer`)."""

    def __init__(self, layer: NeoxLayer, dtype: torch.dtype, packed: bool) -> None:
        self._layer, self._dtype = layer, dtype
        self._qkv, self._dense, self._up, self._down = (
            Projection((linear,), dtype, packed) for linear in layer.linear_layers
        )

    def project_qkv(self, x_TD: Tensor, angles: RotaryAngles) -> tuple[Tensor, Tensor, Tensor]:
        (y_TO,) = self._qkv(layer_norm(x_TD, self._layer.norm, self._dtype)[0])
        return _split_qkv(y_TO, self._layer.head_size, angles)

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor) -> Tensor:
        parallel = self._layer.parallel
        (h_TD,) = self._dense(attended_THD.flatten(1), self._mlp(x_TD) if parallel else x_TD)
        return h_TD if parallel else self._mlp(h_TD)

    def _mlp(self, x_TD: Tensor) -> Tensor:
        (up_TI,) = self._up(layer_norm(x_TD, self._layer.mlp_norm, self._dtype)[0])
        (out_TD,) = self._down(self._layer.activation.forward(up_TI), x_TD)
        return out_TD


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxQkv:
    """Project hidden states to queries, keys and values by one linear layer, whose outputs are grouped by head."""

    norm: LayerNorm
    qkv: Linear
    head_size: int
    angles: RotaryAngles
    dtype: torch.dtype

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values (T, H, D), and `x_TD` for the residual connection."""
        apply: Any = _NeoxQkvFunction.apply
        q_THD, k_THD, v_THD, same_TD = apply(x_TD, self, self.norm.weight_D, self.norm.bias_D, *self.qkv.parameters)
        return q_THD, k_THD, v_THD, same_TD


class _NeoxQkvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, op: NeoxQkv, *_: Tensor) -> tuple[Tensor, ...]:
        (y_TO,), saved = linear(layer_norm(x_TD, op.norm, op.dtype)[0], (_cast_bias(op.qkv, op.dtype),))
        ctx.save_for_backward(x_TD, *saved.lora_inner_TR)
        ctx.op, ctx.seed = op, saved.seed
        return *_split_qkv(y_TO, op.head_size, op.angles), x_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        x_TD, *lora_inner = ctx.saved_tensors  # read once: checkpointed activations can be unpacked a single time
        op, wants = ctx.op, ctx.needs_input_grad
        grad_TO = _join_qkv_grads(outputs[:3], op.angles)
        wants_normed = wants[0] or wants[2] or wants[3]
        normed_TD, moments = layer_norm(x_TD, op.norm, op.dtype)
        grad_normed, param_grads = linear_backward(
            [grad_TO], normed_TD, (op.qkv,), SavedForBackward(tuple(lora_inner), ctx.seed), wants_normed
        )
        if grad_normed is None:
            return outputs[3], None, None, None, *param_grads
        grad_x, *grad_norm = layer_norm_backward(grad_normed, x_TD, op.norm, moments, wants[2:4])
        return grad_x.add_(outputs[3]), None, *grad_norm, *param_grads


def _split_qkv(y_TO: Tensor, head_size: int, angles: RotaryAngles) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, each contiguous."""
    qkv_3THD = y_TO.view(len(y_TO), -1, 3, head_size).permute(2, 0, 1, 3).contiguous()
    rotate_leading_(qkv_3THD[:2], angles)
    return qkv_3THD[0], qkv_3THD[1], qkv_3THD[2]


def _join_qkv_grads(grads_THD: tuple[Tensor, ...], angles: RotaryAngles) -> Tensor:
    """The gradient of `_split_qkv`'s input."""
    grad_TH3D = torch.stack(grads_THD, 2)
    rotate_leading_(grad_TH3D.permute(2, 0, 1, 3)[:2], angles.inverse())
    return grad_TH3D.flatten(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxMlp:
    """The MLP with its norm."""

    norm: LayerNorm
    up: Linear
    down: Linear
    activation: Activation
    dtype: torch.dtype

    def __call__(self, x_TD: Tensor) -> Tensor:
        """x + down(act(up))."""
        apply: Any = _NeoxMlpFunction.apply
        out_TD: Tensor = apply(
            x_TD, self, self.norm.weight_D, self.norm.bias_D, *self.up.parameters, *self.down.parameters
        )
        return out_TD


class _NeoxMlpFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, op: NeoxMlp, *_: Tensor) -> Tensor:
        (up_TI,), saved = linear(layer_norm(x_TD, op.norm, op.dtype)[0], (_cast_bias(op.up, op.dtype),))
        (out_TD,), saved_down = linear(op.activation.forward(up_TI), (_cast_bias(op.down, op.dtype),), x_TD)
        ctx.save_for_backward(x_TD, up_TI, *saved.lora_inner_TR, *saved_down.lora_inner_TR)
        ctx.op, ctx.seeds = op, (saved.seed, saved_down.seed)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        x_TD, up_TI, inner_up, inner_down = ctx.saved_tensors
        op, wants = ctx.op, ctx.needs_input_grad
        saved, saved_down = SavedForBackward((inner_up,), ctx.seeds[0]), SavedForBackward((inner_down,), ctx.seeds[1])
        active_TI = op.activation.forward(up_TI) if op.down.is_trainable else None
        grad_TI, down_grads = linear_backward([outputs[0].to(op.dtype)], active_TI, (op.down,), saved_down, True)
        assert grad_TI is not None
        del active_TI
        grad_up = op.activation.backward(grad_TI, up_TI)
        normed_TD, moments = layer_norm(x_TD, op.norm, op.dtype)
        wants_normed = wants[0] or wants[2] or wants[3]
        grad_normed, param_grads = linear_backward([grad_up], normed_TD, (op.up,), saved, wants_normed)
        if grad_normed is None:
            return outputs[0], None, None, None, *param_grads, *down_grads
        grad_x, *grad_norm = layer_norm_backward(grad_normed, x_TD, op.norm, moments, wants[2:4])
        return grad_x.add_(outputs[0]), None, *grad_norm, *param_grads, *down_grads


def _cast_bias(layer: Linear, dtype: torch.dtype) -> Linear:
    """The layer with its bias cast to the compute type, as under autocast: adding an fp32 bias takes far longer."""
    return layer if layer.bias_O is None else replace(layer, bias_O=layer.bias_O.detach().to(dtype))
