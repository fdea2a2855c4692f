"""The factor on the loss that keeps float16 gradients from vanishing (Micikevicius et al. 2018, arXiv:1710.03740).

It starts high, is halved when a gradient overflows, and is doubled after a long stretch without that: torch's
GradScaler with its defaults. It is a power of two, so that dividing it out again changes no digit.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 2.0**16
LEAST = 1.0
STEADY_STEPS = 2000  # steps without an overflow after which the scale is doubled


@dataclass(slots=True)
class LossScale:
    """`steady` counts the steps since the scale last changed."""

    value: float = START
    steady: int = 0

    def lower(self) -> bool:
        """After an overflow; return whether a smaller scale is left to try."""
        self.value, self.steady = self.value / 2, 0
        return self.value >= LEAST

    def advance(self) -> None:
        """After a step whose gradient was finite."""
        self.steady += 1
        if self.steady == STEADY_STEPS:
            self.value, self.steady = self.value * 2, 0
