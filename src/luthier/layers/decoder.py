"""A stack of decoder layers over packed rows, by the engine's own layers.

    embedding --> layers --> last norm at the positions that carry loss

The last layer computes its output and its MLP at those positions alone. The plain twin is transformers' own model
(tests/architectures/test_fast_path.py).

Shapes: T packed tokens, N positions that carry loss, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.layers.batch import Batch
from luthier.layers.decoder_layer import Mlp, Output, Queries
from luthier.layers.norm import final_norm
from luthier.layers.recognition import FastLayer, FastStack
from luthier.layers.rope import Angles
from luthier.layers.row_attention import Rows, row_attention


def run_decoder(stack: FastStack, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Hidden states (N, D) after the last norm, in `dtype`, at the positions that predict a label.

    Every product runs in `dtype`; the caller's autocast has no say here.
    """
    with torch.autocast(batch.input_ids_BT.device.type, enabled=False):
        return _run(stack, batch, dtype)


def _run(stack: FastStack, batch: Batch, dtype: torch.dtype) -> Tensor:
    embedded_1TD = stack.embed(batch.input_ids_BT)
    x_TD = embedded_1TD[0]
    angles = Angles.of(*stack.rotary(x_TD[None].to(dtype), position_ids=batch.position_ids_BT))
    for place, layer in enumerate(stack.layers, 1):
        wanted_N = batch.positions_N if place == len(stack.layers) else None
        if layer.recomputed and torch.is_grad_enabled():
            x_TD = checkpoint(_layer, layer, x_TD, angles, batch.row_lengths, wanted_N, dtype, use_reentrant=False)
        else:
            x_TD = _layer(layer, x_TD, angles, batch.row_lengths, wanted_N, dtype)
    return final_norm(x_TD, stack.norm, dtype)


def _layer(
    layer: FastLayer, x_TD: Tensor, angles: Angles, lengths: tuple[int, ...], wanted_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The layer's output, of all tokens or of the wanted ones."""
    queries = Queries(layer.norm, layer.qkv, layer.head_size, layer.head_norms, angles, dtype)
    q_THD, k_TKD, v_TKD, x_TD = queries(x_TD)
    attended_THD = row_attention(q_THD, k_TKD, v_TKD, Rows(lengths, layer.scale, layer.window))
    if wanted_N is not None:
        attended_THD, x_TD = attended_THD.index_select(0, wanted_N), x_TD.index_select(0, wanted_N)
    h_TD = Output(layer.o, dtype)(attended_THD, x_TD)
    return Mlp(layer.mlp_norm, layer.gate_up, layer.down, layer.activation, dtype)(h_TD)
