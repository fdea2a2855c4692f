"""A micro-batch as the model reads it: tokens, row lengths, and the positions of labels.

Shapes: B lines (1 when packed), R rows, T tokens of a line, S tokens of a source line, N label positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Source:
    """The encoder's input: one source for each row of the batch."""

    input_ids_BS: Tensor
    attention_mask_BS: Tensor | None  # None when packed
    row_lengths: tuple[int, ...]

    def to(self, device: torch.device) -> Source:
        """The same source on another device."""
        mask = self.attention_mask_BS
        mask = None if mask is None else mask.to(device)
        return replace(self, input_ids_BS=self.input_ids_BS.to(device), attention_mask_BS=mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`positions_N` index the flattened (B*T) tokens whose next token is `labels_N`.

    For an encoder-decoder, `source` is the encoder's input and the other fields are the decoder's.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    attention_mask_BT: Tensor | None  # None when packed: row_lengths delimit the rows
    row_lengths: tuple[int, ...]
    positions_N: Tensor
    labels_N: Tensor
    row_of_label_N: Tensor  # 0..R-1
    rows: tuple[int, ...]
    source: Source | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, without padding."""
        return sum(self.row_lengths) + (sum(self.source.row_lengths) if self.source else 0)

    @property
    def completion_tokens(self) -> int:
        return len(self.labels_N)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        mask = self.attention_mask_BT
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device),
            position_ids_BT=self.position_ids_BT.to(device),
            attention_mask_BT=None if mask is None else mask.to(device),
            positions_N=self.positions_N.to(device),
            labels_N=self.labels_N.to(device),
            row_of_label_N=self.row_of_label_N.to(device),
            source=None if self.source is None else self.source.to(device),
        )
