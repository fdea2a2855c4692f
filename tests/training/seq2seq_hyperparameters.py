"""What shows the effect of the hyperparameters that only encoder-decoders have, by their names."""

from __future__ import annotations

from pathlib import Path

from tiny_models import write_model, write_rows
from training.job_folders import lay_out, run
from training.training_harness import FinishedJob, HyperparameterChecks, TrainingHarness

SEQ2SEQ_CHECKS = HyperparameterChecks()


def _t5(harness: TrainingHarness, name: str, most: int) -> FinishedJob:
    root = Path(harness.root) / "t5"
    model = root / "model"
    if not model.exists():
        write_model(model, "t5")
        write_rows(root / "rows" / "train.jsonl", 20)
    folder = lay_out(root / name, model, root / "rows", max_output_length=most, score_rows=0, epoch=1)
    return FinishedJob(folder, run(folder))


@SEQ2SEQ_CHECKS.of("max_output_length")
def _(harness: TrainingHarness) -> None:
    whole, short = _t5(harness, "whole", 128), _t5(harness, "short", 3)
    assert whole.counts["truncated"] == 0
    assert short.counts["truncated"] > 0
    assert short.counts["completion_tokens"] < whole.counts["completion_tokens"]
    assert short.counts["completion_tokens"] <= 3 * short.counts["rows"]
    prompts = [done.counts["tokens"] - done.counts["completion_tokens"] for done in (whole, short)]
    assert prompts[0] == prompts[1]
    causal = harness.run(max_output_length=3)  # a causal row has one window
    assert causal.counts == harness.run().counts
