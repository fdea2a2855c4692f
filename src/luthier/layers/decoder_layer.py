"""A decoder layer of the Llama family, forward and backward by hand: four pieces, each keeps only what it must.

    x --norm--q, k, v--rope-->  attention  --o--> + x = h --norm--gate, up--act--down--> + h
      \\______ LlamaQkv ______/   row_attention  \\_Output_/   \\____________ LlamaMlp ____________/
      keeps x                   q, k, v          attended      h, gate, up

Norms, activations and their products are computed again in the backward pass. It knows tensors and numbers, not where
they come from (fused_models.py). The reference is transformers' own layer (tests/architectures/test_fused_layers.py).

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
    """A `FusedLayer` of the Llama family. `head_norms` are the norms of queries and keys (Qwen 3)."""

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
    """The layer with its weights laid out (fused_stack.py's `InferenceLayer`)."""

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
    """From hidden states to queries, keys and values. `head_norms` are those of queries and keys (Qwen 3)."""

    norm: RmsNorm
    qkv: tuple[Linear, Linear, Linear]
    head_size: int
    head_norms: tuple[RmsNorm, RmsNorm] | None
    angles: RotaryAngles
    dtype: torch.dtype

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        heads = [norm.weight_D for norm in self.head_norms or ()]
        return self.norm.weight_D, *_parameters(self.qkv), *heads

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """LlamaQkv (T, H, D), keys and values (T, K, D); and `x_TD`, for what is added to it later."""
        apply: Any = _LlamaQkvFunction.apply
        q_THD, k_TKD, v_TKD, same_TD = apply(x_TD, self, *self.parameters)
        return q_THD, k_TKD, v_TKD, same_TD


class _LlamaQkvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, of: LlamaQkv, *_: Tensor) -> tuple[Tensor, ...]:
        flat, kept = linear(rms_norm(x_TD, of.norm, of.dtype), of.qkv)
        q_THD, k_TKD, v_TKD = (y_TO.view(len(y_TO), -1, of.head_size) for y_TO in flat)
        raw = (q_THD, k_TKD) if of.head_norms else (None, None)
        ctx.save_for_backward(x_TD, *raw, *kept.lora_inner_TR)
        ctx.of, ctx.seed = of, kept.seed
        if of.head_norms:
            q_THD, k_TKD = (
                rms_norm(x.flatten(0, 1), norm, of.dtype).view_as(x)
                for x, norm in zip((q_THD, k_TKD), of.head_norms, strict=True)
            )
        return rotate(q_THD, of.angles), rotate(k_TKD, of.angles), v_TKD, x_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        x_TD, *raw = ctx.saved_tensors  # read once: recomputed activations come out a single time
        of, wants, kept = ctx.of, ctx.needs_input_grad, SavedForBackward(tuple(raw[2:]), ctx.seed)
        grad_q, grad_k, grad_v, grad_same = outputs
        back = of.angles.inverse()
        grads = [rotate(grad_q, back), rotate(grad_k, back)]
        heads: list[Tensor | None] = []
        for place, norm in enumerate(of.head_norms or ()):
            grad, grad_weight = rms_norm_backward(
                grads[place].flatten(0, 1), raw[place].flatten(0, 1), norm, norm.weight_D.requires_grad
            )
            grads[place] = grad
            heads.append(grad_weight)
        flat = [grad.reshape(len(x_TD), -1) for grad in (*grads, grad_v)]
        wants_normed = wants[0] or wants[2]
        normed_TD = rms_norm(x_TD, of.norm, of.dtype) if _train(of.qkv) else None
        grad_normed, found = linear_backward(flat, normed_TD, of.qkv, kept, wants_normed)
        if grad_normed is None:
            return grad_same, None, None, *found, *heads
        grad_x, grad_norm = rms_norm_backward(grad_normed, x_TD, of.norm, wants[2], grad_same)
        return grad_x, None, grad_norm, *found, *heads


@dataclass(frozen=True, slots=True)
class OutputProjection:
    """From attended values back to hidden states."""

    o: Linear
    dtype: torch.dtype

    def __call__(self, attended_THD: Tensor, x_TD: Tensor) -> Tensor:
        """x + o(attended)."""
        apply: Any = _OutputProjectionFunction.apply
        h_TD: Tensor = apply(attended_THD.flatten(1), x_TD, self, *self.o.parameters)
        return h_TD


class _OutputProjectionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attended_TO: Tensor, x_TD: Tensor, of: OutputProjection, *_: Tensor) -> Tensor:
        (h_TD,), kept = linear(attended_TO, (of.o,), x_TD)
        ctx.save_for_backward(attended_TO if of.o.is_trainable else None, *kept.lora_inner_TR)
        ctx.of, ctx.seed = of, kept.seed
        return h_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        attended_TO, *lows = ctx.saved_tensors
        grads = [outputs[0].to(ctx.of.dtype)]
        grad, found = linear_backward(
            grads, attended_TO, (ctx.of.o,), SavedForBackward(tuple(lows), ctx.seed), ctx.needs_input_grad[0]
        )
        return grad, outputs[0], None, *found


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaMlp:
    """The gated MLP behind its norm."""

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
    def forward(ctx: Any, h_TD: Tensor, of: LlamaMlp, *_: Tensor) -> Tensor:
        (gate_TI, up_TI), kept = linear(rms_norm(h_TD, of.norm, of.dtype), of.gate_up)
        (out_TD,), kept_down = linear(gated(gate_TI, up_TI, of.activation), (of.down,), h_TD)
        ctx.save_for_backward(h_TD, gate_TI, up_TI, *kept.lora_inner_TR, *kept_down.lora_inner_TR)
        ctx.of, ctx.seeds = of, (kept.seed, kept_down.seed)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Grads:
        h_TD, gate_TI, up_TI, *lows = ctx.saved_tensors
        of, wants = ctx.of, ctx.needs_input_grad
        kept, kept_down = (
            SavedForBackward(tuple(lows[:2]), ctx.seeds[0]),
            SavedForBackward(tuple(lows[2:]), ctx.seeds[1]),
        )
        active_TI = of.activation.forward(gate_TI)
        product_TI = active_TI * up_TI if of.down.is_trainable else None
        grad_TI, found_down = linear_backward([outputs[0].to(of.dtype)], product_TI, (of.down,), kept_down, True)
        assert grad_TI is not None
        del product_TI
        grad_gate, grad_up = gated_backward(grad_TI, gate_TI, up_TI, active_TI, of.activation)
        normed_TD = rms_norm(h_TD, of.norm, of.dtype) if _train(of.gate_up) else None
        grad_normed, found = linear_backward((grad_gate, grad_up), normed_TD, of.gate_up, kept, wants[0] or wants[2])
        if grad_normed is None:
            return outputs[0], None, None, *found, *found_down
        grad_h, grad_norm = rms_norm_backward(grad_normed, h_TD, of.norm, wants[2], outputs[0])
        return grad_h, None, grad_norm, *found, *found_down


def _parameters(layers: Sequence[Linear]) -> list[Tensor | None]:
    return [parameter for layer in layers for parameter in layer.parameters]


def _train(layers: Sequence[Linear]) -> bool:
    return any(layer.is_trainable for layer in layers)
