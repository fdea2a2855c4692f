"""The report's headline and first sentences agree with the numbers."""

from __future__ import annotations

from typing import Any

from luthier.evaluation.curves import Curves
from luthier.evaluation.run_summary import summarize_run


def metrics(
    loss: tuple[float, float], exact: tuple[float, float] | None, rows: int = 100, **more: Any
) -> dict[str, Any]:
    pairs = {"loss": loss} | ({"exact_match": exact} if exact else {})
    return {
        "rows": rows,
        "scored_by_generation": rows if exact else 0,
        "split": "test",
        "base": {name: pair[0] for name, pair in pairs.items()},
        "tuned": {name: pair[1] for name, pair in pairs.items()},
        "difference": {
            name: {"value": b - a, "low": b - a - 0.05, "high": b - a + 0.05} for name, (a, b) in pairs.items()
        },
    } | more


RUN = {"model": {"name": "luthier/tiny"}, "kind": "instruction", "settings": {"peft_type": "lora"}}


def test_better() -> None:
    summary = summarize_run(
        RUN, metrics((2.0, 0.5), (0.1, 0.9), steps=30, epochs=3.0, stopped="completed"), {}, Curves(), "", 800
    )
    assert (summary.tone, summary.verdict) == ("better", "Measurably better")
    assert summary.result == (
        "On 100 test rows, loss fell from 2.000 to 0.500 nats per token (−75%) "
        "and exact match rose from 0.100 to 0.900."
    )
    assert summary.about == (
        "luthier/tiny, tuned with LoRA on 800 instruction rows for 30 steps (3 epochs); completed."
    )


def test_worse_mixed_unclear_and_few() -> None:
    assert summarize_run(RUN, metrics((1.0, 2.0), None), {}, Curves(), "").verdict == "Measurably worse"
    assert (
        summarize_run(RUN, metrics((2.0, 1.0), (0.9, 0.1)), {}, Curves(), "").verdict
        == "Some metrics better, some worse"
    )
    unclear = summarize_run(RUN, metrics((2.0, 2.01), (0.5, 0.51)), {}, Curves(), "")
    assert unclear.verdict == "No clear change"
    assert unclear.result.count("may be chance") == 2
    assert summarize_run(RUN, metrics((2.0, 0.1), (0.1, 0.9), rows=5), {}, Curves(), "").tone == "unclear"


def test_unfinished_failed_and_unscored() -> None:
    empty = summarize_run({}, {}, {"model": "m"}, Curves(), "")
    assert (empty.model, empty.tone, empty.state) == ("m", "unfinished", "unfinished")
    assert "No training step" in empty.result
    assert "step is 7" in summarize_run({}, {}, {}, Curves(loss=[(7, 1.25)]), "").result
    failed = summarize_run({}, {}, {}, Curves(), "disk full")
    assert (failed.verdict, failed.failure, failed.state) == ("The run failed", "disk full", "failed")
    unscored = summarize_run({}, {"steps": 3, "base": None, "tuned": None, "stopped": "interrupted"}, {}, Curves(), "")
    assert (unscored.verdict, unscored.state) == ("Stopped", "interrupted")
    assert unscored.result == "The run was stopped after 3 steps; its model was kept, and not scored."
    unscored = summarize_run({}, {"steps": 3, "base": None, "tuned": None, "stopped": "completed"}, {}, Curves(), "")
    assert (unscored.verdict, unscored.state) == ("Not scored", "completed")


def test_free_text_is_judged_by_rouge() -> None:
    scores = metrics((2.0, 1.0), (0.0, 0.0))
    scores["base"]["rougeL"], scores["tuned"]["rougeL"] = 0.2, 0.4
    scores["difference"]["rougeL"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert "ROUGE-L rose from 0.200 to 0.400" in summarize_run(RUN, scores, {}, Curves(), "").result
