"""Encoder and decoder of the T5 family over packed rows.

    sources  | a a a | b b |      encoder: attention within each source
    targets  | x x | y y y |      decoder: attention within each target, and over its source

transformers' stack would build the relative position bias for the whole packed length; here it is built once for the
longest row, and each row uses a slice of it. The blocks are transformers' own. The reference is the model called once
per row (tests/architectures/).

Shapes: T packed tokens, L longest row, H heads, D hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def run_t5_stack(
    stack: nn.Module,
    ids_1T: Tensor,
    lengths: tuple[int, ...],
    encoded_1SD: Tensor | None = None,
    source_lengths: tuple[int, ...] | None = None,
) -> Tensor:
    """Hidden states (1, T, D) of a T5 stack after its last norm; a decoder also gets the encoder's states."""
    layers: Any = stack
    attention = layers.block[0].layer[0].SelfAttention
    longest = max(lengths)
    bias_1HLL = attention.compute_bias(longest, longest, device=ids_1T.device)
    hidden = layers.dropout(layers.embed_tokens(ids_1T))
    # Cross-attention has no bias; without this, transformers would allocate targets x sources zeros.
    no_bias = None if encoded_1SD is None else hidden.new_zeros(())
    for block in layers.block:
        hidden, _, _ = block(
            hidden, None, bias_1HLL, encoded_1SD, None, no_bias,
            row_lengths=lengths, source_lengths=source_lengths,
        )  # fmt: skip
    normed: Tensor = layers.dropout(layers.final_layer_norm(hidden))
    return normed
