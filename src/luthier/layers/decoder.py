"""Run a stack of Luthier's fused decoder layers over packed rows.

    embedding --> layers --> last norm at the label positions

The last layer computes its output projection and MLP at those positions only. Layers are used through the protocol in
fused_stack.py. The reference is transformers' own model (tests/architectures/test_fused_layers.py).

Shapes: T packed tokens, N label positions, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.layers.batch import Batch
from luthier.layers.fused_stack import FusedLayer, FusedStack
from luthier.layers.rope import RotaryAngles
from luthier.layers.row_attention import AttentionSpec
from luthier.layers.varlen_attention import attend_rows


def run_decoder(stack: FusedStack, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Hidden states (N, D) after the last norm, in `dtype`, at the positions that predict a label.

    Every matrix product runs in `dtype`; the caller's autocast is disabled.
    """
    with torch.autocast(batch.input_ids_BT.device.type, enabled=False):
        return _run(stack, batch, dtype)


def _run(stack: FusedStack, batch: Batch, dtype: torch.dtype) -> Tensor:
    embedded_1TD = stack.embed(batch.input_ids_BT)
    x_TD = embedded_1TD[0]
    angles = RotaryAngles.from_cos_sin(*stack.rotary(x_TD[None].to(dtype), position_ids=batch.position_ids_BT))
    for index, layer in enumerate(stack.layers, 1):
        output_N = batch.positions_N if index == len(stack.layers) else None
        if layer.checkpointed and torch.is_grad_enabled():
            x_TD = checkpoint(_layer, layer, x_TD, angles, batch.row_lengths, output_N, dtype, use_reentrant=False)
        else:
            x_TD = _layer(layer, x_TD, angles, batch.row_lengths, output_N, dtype)
    return stack.norm(x_TD, dtype)


def _layer(
    layer: FusedLayer,
    x_TD: Tensor,
    angles: RotaryAngles,
    lengths: tuple[int, ...],
    output_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The layer's output at tokens `output_N`, or at all tokens."""
    q_THD, k_TKD, v_TKD, x_TD = layer.project_qkv(x_TD, angles, dtype)
    attended_THD = attend_rows(
        q_THD, k_TKD, v_TKD, AttentionSpec(lengths=lengths, scale=layer.scale, window=layer.window)
    )
    if output_N is not None:
        attended_THD, x_TD = attended_THD.index_select(0, output_N), x_TD.index_select(0, output_N)
    return layer.apply_output_and_mlp(attended_THD, x_TD, dtype)
