"""The loss scale that keeps float16 gradients from underflowing (Micikevicius et al. 2018, arXiv:1710.03740).

It starts high, is halved when a gradient overflows, and is doubled after GROWTH_INTERVAL steps without an overflow:
torch's GradScaler with its defaults. It is a power of two, so dividing it out again is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

INITIAL_SCALE = 2.0**16
MIN_SCALE = 1.0
GROWTH_INTERVAL = 2000  # steps without an overflow after which the scale is doubled


@dataclass(slots=True)
class LossScale:
    """`steady_steps` counts the steps since the scale last changed."""

    value: float = INITIAL_SCALE
    steady_steps: int = 0

    def decrease(self) -> bool:
        """Halve the scale after an overflow; return whether it is still usable."""
        self.value, self.steady_steps = self.value / 2, 0
        return self.value >= MIN_SCALE

    def count_finite_step(self) -> None:
        """Count a step whose gradient was finite, and double the scale when due."""
        self.steady_steps += 1
        if self.steady_steps == GROWTH_INTERVAL:
            self.value, self.steady_steps = self.value * 2, 0
