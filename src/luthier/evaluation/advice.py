"""What to try next after a run, from its validation curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.evaluation.curves import Curves
from luthier.evaluation.verdict import format_metric

MIN_FALL = 0.01
"""Relative fall of the validation loss from the last validation but one that counts as still falling."""


def advise_next_run(curves: Curves, stopped: str, settings: Mapping[str, Any]) -> list[str]:
    """Return lines of advice; empty if the curve gives none.

    `stopped`: metrics.json's reason (completed, max_steps, early_stopping); `settings`: the run's hyperparameters.
    """
    losses = [loss for _, loss in curves.eval_loss]
    if stopped not in ("completed", "max_steps") or len(losses) < 2:
        return []
    before, last = losses[-2:]
    if last > min(losses) or before - last < MIN_FALL * before:
        return []
    if stopped == "max_steps":
        longer = f"more steps (max_steps={2 * int(settings['max_steps'])})"
    else:
        longer = f"more epochs (epoch={2 * int(settings['epoch'])})"
    return [
        f"validation loss was still falling at the last step ({format_metric(before)} to {format_metric(last)}): try "
        f"{longer} or a higher learning_rate ({2 * float(settings['learning_rate']):g})"
    ]
