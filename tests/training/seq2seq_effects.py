"""What shows the effect of the hyperparameters that only encoder-decoders have, by their names."""

from __future__ import annotations

from pathlib import Path

from tiny_models import write_model, write_rows
from training.job_folders import lay_out, run
from training.training_harness import Done, Effects, Lab

SEQ2SEQ_EFFECTS = Effects()


def _t5(lab: Lab, name: str, most: int) -> Done:
    root = Path(lab.root) / "t5"
    model = root / "model"
    if not model.exists():
        write_model(model, "t5")
        write_rows(root / "rows" / "train.jsonl", 20)
    folder = lay_out(root / name, model, root / "rows", max_output_length=most, score_rows=0, epoch=1)
    return Done(folder, run(folder))


@SEQ2SEQ_EFFECTS.of("max_output_length")
def _(lab: Lab) -> None:
    whole, short = _t5(lab, "whole", 128), _t5(lab, "short", 3)
    assert whole.counts["truncated"] == 0
    assert short.counts["truncated"] > 0
    assert short.counts["completion_tokens"] < whole.counts["completion_tokens"]
    assert short.counts["completion_tokens"] <= 3 * short.counts["rows"]
    prompts = [done.counts["tokens"] - done.counts["completion_tokens"] for done in (whole, short)]
    assert prompts[0] == prompts[1]
    causal = lab.run(max_output_length=3)  # a causal row has one window
    assert causal.counts == lab.run().counts
