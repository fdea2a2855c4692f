"""Rotary positions (Su et al. 2021, arXiv:2104.09864): each head's first half is turned against its second, or the
halves of its first part (GPT-NeoX).

    y = x * cos + (-second half, first half) * sin

The minus stands in the sine, so the halves are swapped in one copy and no negated or joined ones are made. Turning by
the opposite angle undoes it, and is its backward pass. The reference is transformers' apply_rotary_pos_emb
(tests/layers/test_rope.py).

Shapes: T tokens, H heads, D head size, X any kinds of them side by side.
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
        """From what transformers' rotary embedding gives: both halves alike."""
        signed = sin_1TD.clone()
        signed[..., : signed.shape[-1] // 2].neg_()
        return cls(cos_1TD[0, :, None], signed[0, :, None])

    def inverse(self) -> RotaryAngles:
        """The same angles the other way round."""
        return RotaryAngles(self.cos_T1D, -self.sin_T1D)


def rotate(x_THD: Tensor, angles: RotaryAngles) -> Tensor:
    """Each head turned by its position's angles: a new tensor, without autograd."""
    half = x_THD.shape[-1] // 2
    turned = torch.empty_like(x_THD)
    turned[..., :half] = x_THD[..., half:]
    turned[..., half:] = x_THD[..., :half]
    return turned.mul_(angles.sin_T1D).addcmul_(x_THD, angles.cos_T1D)


def rotate_leading_(x_XTHD: Tensor, angles: RotaryAngles) -> None:
    """Turn, in place, as much of each head as there are angles (its first part; all of it at most)."""
    part = x_XTHD[..., : angles.cos_T1D.shape[-1]]
    # In one piece, and the angles of all heads as well: torch's inner loops are slow where a part is short.
    cos_THD, sin_THD = (angle.expand(part.shape[-3:]).contiguous() for angle in (angles.cos_T1D, angles.sin_T1D))
    part.copy_(rotate(part.contiguous(), RotaryAngles(cos_THD, sin_THD)))
