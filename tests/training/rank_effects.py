"""The effects of the hyperparameters of several ranks; test_effects.py runs them."""

from __future__ import annotations

import pytest
from training.job_folders import lines
from training.rank_harness import job, together
from training.training_harness import Effects, Lab

RANK_EFFECTS = Effects()


@RANK_EFFECTS.of("enable_fsdp")
def _(lab: Lab) -> None:
    """Two ranks hold half of the weights each and learn what one learns; one rank says that it has nothing to share."""
    alone = lab.run(enable_fsdp=True)
    assert any("enable_fsdp=True has no effect on one rank" in warning for warning in alone.record["warnings"])
    assert alone.losses == lab.run().losses
    folder = lab.lay_out(enable_fsdp=True, ranks=2)
    said = together(2, job, str(folder.root))
    assert "2 ranks, each tensor sharded over them" in said[0]
    losses = [line["loss"] for line in lines(folder) if "loss" in line]
    assert losses == pytest.approx(lab.run(gradient_accumulation_steps=2).losses, rel=1e-5)
