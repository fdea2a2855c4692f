"""A decoder layer of the Llama family, with manual backward passes that save as little as possible.

    x --norm--q, k, v--rope-->  attention  --o--> + x = h --norm--gate, up--act--down--> + h
      \\______ LlamaQkv ______/   row_attention  \\_Output_/   \\____________ LlamaMlp ____________/
      saves x                   q, k, v          attended      h, gate, up

The backward pass recomputes norms, activations and their products. fused_models.py builds the layer from transformers'
modules. The reference is transformers' own layer (tests/architectures/test_fused_layers.py).

Shapes: T packed tokens, D hidden size, H heads, K key/value heads, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.layers.linear import Linear, SavedForBackward, linear, linear_backward
from luthier.layers.projection import Projection
from luthier.layers.rms_norm import RmsNorm, rms_norm, rms_norm_backward
from luthier.layers.rope import RotaryAngles, rotate
from luthier.layers.swiglu import Activation, gated, gated_backward

Grads = tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaLayer:
    """A `FusedLayer` of the Llama family. `head_norms` normalize queries and keys (Qwen 3)."""

    norm: RmsNorm
    qkv: tuple[Linear, Linear, Linear]
    head_norms: tuple[RmsNorm, RmsNorm] | None
    o: Linear
    mlp_norm: RmsNorm
    gate_up: tuple[Linear, Linear]
    down: Linear
    activation: Activation
    head_size: int
    scale: float
    window: int | None
    checkpointed: bool

    @property
    def linear_layers(self) -> tuple[Linear, ...]:
        return *self.qkv, self.o, *self.gate_up, self.down

    def project_qkv(
        self, x_TD: Tensor, angles: RotaryAngles, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return LlamaQkv(
            norm=self.norm, qkv=self.qkv, head_size=self.head_size, head_norms=self.head_norms, angles=angles,
            dtype=dtype,
        )(x_TD)  # fmt: skip

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        h_TD = OutputProjection(self.o, dtype)(attended_THD, x_TD)
        return LlamaMlp(
            norm=self.mlp_norm, gate_up=self.gate_up, down=self.down, activation=self.activation, dtype=dtype
        )(h_TD)

    def for_inference(self, dtype: torch.dtype, packed: bool) -> LlamaInferenceLayer:
        return LlamaInferenceLayer(self, dtype, packed)


class LlamaInferenceLayer:
    """The layer with its weights prepared for inference (fused_stack.py's `InferenceLayer`)."""

    def __init__(self, layer: LlamaLayer, dtype: torch.dtype, packed: bool) -> None:
        self._layer, self._dtype = layer, dtype
        self._qkv = Projection(layer.qkv, dtype, packed)
        self._o = Projection((layer.o,), dtype, packed)
        self._gate_up = Projection(layer.gate_up, dtype, packed)
        self._down = Projection((layer.down,), dtype, packed)

    def project_qkv(self, x_TD: Tensor, angles: RotaryAngles) -> tuple[Tensor, Tensor, Tensor]:
        layer, dtype = self._layer, self._dtype
        q_THD, k_TKD, v_TKD = (
            y_TO.reshape(len(y_TO), -1, layer.head_size) for y_TO in self._qkv(rms_norm(x_TD, layer.norm, dtype))
        )
        if layer.head_norms:
            q_THD, k_TKD = (
                rms_norm(x.flatten(0, 1), norm, dtype).view_as(x)
                for x, norm in zip((q_THD, k_TKD), layer.head_norms, strict=True)
            )
        return rotate(q_THD, angles), rotate(k_TKD, angles), v_TKD

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor) -> Tensor:
        layer = self._layer
        (h_TD,) = self._o(attended_THD.flatten(1), x_TD)
        gate_TI, up_TI = self._gate_up(rms_norm(h_TD, layer.mlp_norm, self._dtype))
        (out_TD,) = self._down(gated(gate_TI, up_TI, layer.activation), h_TD)
        return out_TD


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaQkv:
    """Project hidden states to queries, keys and values; `head_norms` normalize queries and keys (Qwen 3)."""

    norm: RmsNorm
    qkv: tuple[Linear, Linear, Linear]
    head_size: int
    head_norms: tuple[RmsNorm, RmsNorm] | None
    angles: RotaryAngles
    dtype: torch.dtype

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        head_norms = [norm.weight_D for norm in self.head_norms or ()]
        return self.norm.weight_D, *_parameters(self.qkv), *head_norms

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (T, H, D), keys and values (T, K, D), and `x_TD` for the residual connection."""
        apply: Any = _LlamaQkvFunction.apply
        q_THD, k_TKD, v_TKD, same_TD = apply(x_TD, self, *self.parameters)
        return q_THD, k_TKD, v_TKD, same_TD


class _LlamaQkvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, op: LlamaQkv, *_: Tensor) -> tuple[Tensor, ...]:
        outputs, saved = linear(rms_norm(x_TD, op.norm, op.dtype), op.qkv)
        q_THD, k_TKD, v_TKD = (y_TO.view(len(y_TO), -1, op.head_size) for y_TO in outputs)
        raw = (q_THD, k_TKD) if op.head_norms else (None, None)
        ctx.save_for_backward(x_TD, *raw, *saved.lora_inner_TR)
        ctx.op, ctx.seed = op, saved.seed
        if op.head_norms:
            q_THD, k_TKD = (
                rms_norm(x.flatten(0, 1), norm, op.dtype).view_as(x)
                for x, norm in zip((q_THD, k_TKD), op.head_norms, strict=True)
            )
        return rotate(q_THD, op.angles), rotate(k_TKD, op.angles), v_TKD, x_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        x_TD, *raw = ctx.saved_tensors  # read once: checkpointed activations can be unpacked a single time
        op, wants, saved = ctx.op, ctx.needs_input_grad, SavedForBackward(tuple(raw[2:]), ctx.seed)
        grad_q, grad_k, grad_v, grad_same = outputs
        inverse = op.angles.inverse()
        grads = [rotate(grad_q, inverse), rotate(grad_k, inverse)]
        norm_grads: list[Tensor | None] = []
        for index, norm in enumerate(op.head_norms or ()):
            grad, grad_weight = rms_norm_backward(
                grads[index].flatten(0, 1), raw[index].flatten(0, 1), norm, norm.weight_D.requires_grad
            )
            grads[index] = grad
            norm_grads.append(grad_weight)
        grads = [grad.reshape(len(x_TD), -1) for grad in (*grads, grad_v)]
        wants_normed = wants[0] or wants[2]
        normed_TD = rms_norm(x_TD, op.norm, op.dtype) if _any_trainable(op.qkv) else None
        grad_normed, param_grads = linear_backward(grads, normed_TD, op.qkv, saved, wants_normed)
        if grad_normed is None:
            return grad_same, None, None, *param_grads, *norm_grads
        grad_x, grad_norm = rms_norm_backward(grad_normed, x_TD, op.norm, wants[2], grad_same)
        return grad_x, None, grad_norm, *param_grads, *norm_grads


@dataclass(frozen=True, slots=True)
class OutputProjection:
    """Project attended values to hidden states."""

    o: Linear
    dtype: torch.dtype

    def __call__(self, attended_THD: Tensor, x_TD: Tensor) -> Tensor:
        """x + o(attended)."""
        apply: Any = _OutputProjectionFunction.apply
        h_TD: Tensor = apply(attended_THD.flatten(1), x_TD, self, *self.o.parameters)
        return h_TD


class _OutputProjectionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attended_TO: Tensor, x_TD: Tensor, op: OutputProjection, *_: Tensor) -> Tensor:
        (h_TD,), saved = linear(attended_TO, (op.o,), x_TD)
        ctx.save_for_backward(attended_TO if op.o.is_trainable else None, *saved.lora_inner_TR)
        ctx.op, ctx.seed = op, saved.seed
        return h_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        attended_TO, *lora_inner = ctx.saved_tensors
        grads = [outputs[0].to(ctx.op.dtype)]
        grad, param_grads = linear_backward(
            grads, attended_TO, (ctx.op.o,), SavedForBackward(tuple(lora_inner), ctx.seed), ctx.needs_input_grad[0]
        )
        return grad, outputs[0], None, *param_grads


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaMlp:
    """The gated MLP with its norm."""

    norm: RmsNorm
    gate_up: tuple[Linear, Linear]
    down: Linear
    activation: Activation
    dtype: torch.dtype

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        return self.norm.weight_D, *_parameters((*self.gate_up, self.down))

    def __call__(self, h_TD: Tensor) -> Tensor:
        """h + down(act(gate) * up)."""
        apply: Any = _LlamaMlpFunction.apply
        out_TD: Tensor = apply(h_TD, self, *self.parameters)
        return out_TD


class _LlamaMlpFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, op: LlamaMlp, *_: Tensor) -> Tensor:
        (gate_TI, up_TI), saved = linear(rms_norm(h_TD, op.norm, op.dtype), op.gate_up)
        (out_TD,), saved_down = linear(gated(gate_TI, up_TI, op.activation), (op.down,), h_TD)
        ctx.save_for_backward(h_TD, gate_TI, up_TI, *saved.lora_inner_TR, *saved_down.lora_inner_TR)
        ctx.op, ctx.seeds = op, (saved.seed, saved_down.seed)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        h_TD, gate_TI, up_TI, *lora_inner = ctx.saved_tensors
        op, wants = ctx.op, ctx.needs_input_grad
        saved, saved_down = (
            SavedForBackward(tuple(lora_inner[:2]), ctx.seeds[0]),
            SavedForBackward(tuple(lora_inner[2:]), ctx.seeds[1]),
        )
        active_TI = op.activation.forward(gate_TI)
        product_TI = active_TI * up_TI if op.down.is_trainable else None
        grad_TI, down_grads = linear_backward([outputs[0].to(op.dtype)], product_TI, (op.down,), saved_down, True)
        assert grad_TI is not None
        del product_TI
        grads_TI = gated_backward(grad_TI, gate_TI, up_TI, active_TI, op.activation)
        normed_TD = rms_norm(h_TD, op.norm, op.dtype) if _any_trainable(op.gate_up) else None
        grad_normed, param_grads = linear_backward(grads_TI, normed_TD, op.gate_up, saved, wants[0] or wants[2])
        if grad_normed is None:
            return outputs[0], None, None, *param_grads, *down_grads
        grad_h, grad_norm = rms_norm_backward(grad_normed, h_TD, op.norm, wants[2], outputs[0])
        return grad_h, None, grad_norm, *param_grads, *down_grads


def _parameters(layers: Sequence[Linear]) -> list[Tensor | None]:
    return [parameter for layer in layers for parameter in layer.parameters]


def _any_trainable(layers: Sequence[Linear]) -> bool:
    return any(layer.is_trainable for layer in layers)
