"""A stack of decoder layers over packed rows, by Luthier's fused layers.

    embedding --> layers --> last norm at the positions that carry loss

The last layer computes its output and its MLP at those positions alone. What a layer is made of it does not know
(fused_stack.py). The reference is transformers' own model (tests/architectures/test_fused_layers.py).

Shapes: T packed tokens, N positions that carry loss, D hidden size.
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

    Every product runs in `dtype`; the caller's autocast has no say here.
    """
    with torch.autocast(batch.input_ids_BT.device.type, enabled=False):
        return _run(stack, batch, dtype)


def _run(stack: FusedStack, batch: Batch, dtype: torch.dtype) -> Tensor:
    embedded_1TD = stack.embed(batch.input_ids_BT)
    x_TD = embedded_1TD[0]
    angles = RotaryAngles.from_cos_sin(*stack.rotary(x_TD[None].to(dtype), position_ids=batch.position_ids_BT))
    for place, layer in enumerate(stack.layers, 1):
        wanted_N = batch.positions_N if place == len(stack.layers) else None
        if layer.checkpointed and torch.is_grad_enabled():
            x_TD = checkpoint(_layer, layer, x_TD, angles, batch.row_lengths, wanted_N, dtype, use_reentrant=False)
        else:
            x_TD = _layer(layer, x_TD, angles, batch.row_lengths, wanted_N, dtype)
    return stack.norm(x_TD, dtype)


def _layer(
    layer: FusedLayer,
    x_TD: Tensor,
    angles: RotaryAngles,
    lengths: tuple[int, ...],
    wanted_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The layer's output, of all tokens or of the wanted ones."""
    q_THD, k_TKD, v_TKD, x_TD = layer.project_qkv(x_TD, angles, dtype)
    attended_THD = attend_rows(
        q_THD, k_TKD, v_TKD, AttentionSpec(lengths=lengths, scale=layer.scale, window=layer.window)
    )
    if wanted_N is not None:
        attended_THD, x_TD = attended_THD.index_select(0, wanted_N), x_TD.index_select(0, wanted_N)
    return layer.apply_output_and_mlp(attended_THD, x_TD, dtype)
