"""Rotary positions (Su et al. 2021, arXiv:2104.09864): each head's first half is rotated with its second, or only
within the leading part of each head (GPT-NeoX).

    y = x * cos + (-second half, first half) * sin

The sine holds the minus sign, so swapping the halves takes one copy, without negated or concatenated ones. Rotating by
the opposite angle is the inverse and the backward pass. The reference is transformers' apply_rotary_pos_emb
(tests/layers/test_rope.py).

Shapes: T tokens, H heads, D head size, X stacked kinds (queries and keys).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RotaryAngles:
    """Cosine of each position's angles, and sine with its first half negated."""

    cos_T1D: Tensor
    sin_T1D: Tensor

    @classmethod
    def from_cos_sin(cls, cos_1TD: Tensor, sin_1TD: Tensor) -> RotaryAngles:
        """From the output of transformers' rotary embedding, whose halves are equal."""
        signed = sin_1TD.clone()
        signed[..., : signed.shape[-1] // 2].neg_()
        return cls(cos_1TD[0, :, None], signed[0, :, None])

    def inverse(self) -> RotaryAngles:
        """The opposite angles."""
        return RotaryAngles(self.cos_T1D, -self.sin_T1D)


def rotate(x_THD: Tensor, angles: RotaryAngles) -> Tensor:
    """Rotate each head by its position's angles; a new tensor, without autograd."""
    half = x_THD.shape[-1] // 2
    rotated = torch.empty_like(x_THD)
    rotated[..., :half] = x_THD[..., half:]
    rotated[..., half:] = x_THD[..., :half]
    return rotated.mul_(angles.sin_T1D).addcmul_(x_THD, angles.cos_T1D)


def rotate_leading_(x_XTHD: Tensor, angles: RotaryAngles) -> None:
    """Rotate, in place, the leading part of each head, as long as the angles."""
    leading = x_XTHD[..., : angles.cos_T1D.shape[-1]]
    # Contiguous, with the angles of all heads: torch's inner loops are slow for short rows.
    cos_THD, sin_THD = (angle.expand(leading.shape[-3:]).contiguous() for angle in (angles.cos_T1D, angles.sin_T1D))
    leading.copy_(rotate(leading.contiguous(), RotaryAngles(cos_THD, sin_THD)))
