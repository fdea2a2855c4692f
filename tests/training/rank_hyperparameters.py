"""The effects of the hyperparameters of several ranks; test_every_hyperparameter.py runs them."""

from __future__ import annotations

import pytest
from training.job_folders import lines
from training.rank_harness import run_job_on_rank, run_on_ranks
from training.training_harness import HyperparameterChecks, TrainingHarness

RANK_CHECKS = HyperparameterChecks()


@RANK_CHECKS.of("enable_fsdp")
def _(harness: TrainingHarness) -> None:
    """Two ranks hold half of the weights each and learn what one learns; one rank says that it has nothing to share."""
    alone = harness.run(enable_fsdp=True)
    assert any("enable_fsdp=True has no effect on one rank" in warning for warning in alone.record["warnings"])
    assert alone.losses == harness.run().losses
    folder = harness.lay_out(enable_fsdp=True, ranks=2)
    said = run_on_ranks(2, run_job_on_rank, str(folder.root))
    assert "2 ranks, each tensor sharded over them" in said[0]
    losses = [line["loss"] for line in lines(folder) if "loss" in line]
    assert losses == pytest.approx(harness.run(gradient_accumulation_steps=2).losses, rel=1e-5)
