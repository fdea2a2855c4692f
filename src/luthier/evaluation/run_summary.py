"""The report's headline and first sentences: model, data, and what changed, from run.json and metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.catalog.metrics import METRICS
from luthier.evaluation.curves import Curves
from luthier.evaluation.verdict import (
    MIN_ROWS,
    Verdict,
    exact_match_lags,
    format_metric,
    judge_difference,
    measured_rows,
)

_STOPPED = {
    "completed": "completed",
    "max_steps": "stopped at max_steps",
    "early_stopping": "stopped early because the validation loss no longer improved",
    "interrupted": "interrupted",
}
_KINDS = {
    "instruction": "instruction rows",
    "autopilot": "input/output rows",
    "chat": "chats",
    "domain": "blocks of plain text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """`tone`: better, worse, unclear or unfinished; `verdict`: the headline; `result` and `about`: sentences."""

    tone: str
    verdict: str
    result: str
    about: str
    model: str
    state: str
    failure: str = ""
    tiles: list[tuple[str, str, str, str]] = field(default_factory=list)  # label, base, tuned, verdict


def summarize_run(
    run: Mapping[str, Any], metrics: Mapping[str, Any], request: Mapping[str, Any], curves: Curves, failure: str,
    training_rows: int | None = None,
) -> RunSummary:  # fmt: skip
    """Describe the run. Every argument may be empty; `training_rows`: rows of the training split, if known."""
    model = str((run.get("model") or {}).get("name") or request.get("model") or "the base model")
    about = _about(run, metrics, model, training_rows)
    state = str(metrics.get("stopped") or ("failed" if failure else "unfinished"))
    if not metrics.get("base") or not metrics.get("tuned"):
        headline, result = _describe_unscored(metrics, curves, failure)
        return RunSummary(tone="unfinished", verdict=headline, result=result, about=about, model=model, state=state,
                          failure=failure)  # fmt: skip
    differences = metrics.get("difference") or {}
    verdicts = {name: judge_difference(name, differences.get(name), measured_rows(metrics, name)) for name in METRICS}
    tone, headline = _overall_verdict(metrics, set(verdicts.values()))
    names = _main_metrics(metrics)
    changes = " and ".join(_describe_change(metrics, name, verdicts[name]) for name in names)
    base, tuned = metrics["base"], metrics["tuned"]
    tiles = [
        (METRICS[name].label, format_metric(base[name]), format_metric(tuned[name]), str(verdicts[name]))
        for name in names
    ]
    result = f"On {_describe_rows(metrics)}, {changes}." if changes else "No metric applies to these rows."
    return RunSummary(tone=tone, verdict=headline, result=result, about=about, model=model, state=state,
                      failure=failure, tiles=tiles)  # fmt: skip


def _overall_verdict(metrics: Mapping[str, Any], verdicts: set[Verdict]) -> tuple[str, str]:
    generated = int(metrics.get("scored_by_generation") or 0)
    if generated and (metrics.get("empty_generations") or {}).get("tuned") == generated:
        return "unclear", "The tuned model generated no text"
    if int(metrics.get("rows") or 0) < MIN_ROWS:
        return "unclear", "Too few held-out rows for a verdict"
    if {Verdict.BETTER, Verdict.WORSE} <= verdicts:
        return "unclear", "Some metrics better, some worse"
    if Verdict.BETTER in verdicts:
        return "better", "Measurably better" + (", but exact match is not" if exact_match_lags(metrics) else "")
    if Verdict.WORSE in verdicts:
        return "worse", "Measurably worse"
    return "unclear", "No clear change"


def _main_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Loss and the most informative text metric: that of answers or JSON values, exact match for labels, ROUGE-L for
    free text.
    """
    measured = [
        name for name in METRICS if metrics["base"].get(name) is not None and metrics["tuned"].get(name) is not None
    ]
    is_labels = "f1" in measured or max(metrics[model].get("exact_match") or 0 for model in ("base", "tuned")) >= 0.1
    candidates = ("answer_match", "json_match", "exact_match" if is_labels else "rougeL")
    names = ["loss", next((name for name in candidates if name in measured), "rougeL")]
    if not set(names) & set(measured) - {"loss"}:
        names = ["loss", "token_accuracy"]
    return [name for name in names if name in measured]


def _describe_change(metrics: Mapping[str, Any], name: str, verdict: Verdict) -> str:
    base, tuned = metrics["base"][name], metrics["tuned"][name]
    direction = "stayed at" if base == tuned else "rose from" if tuned > base else "fell from"
    text = f"{METRICS[name].label} {direction} {format_metric(base)}"
    if base != tuned:
        text += f" to {format_metric(tuned)}"
    if name == "loss" and base > 0 and base != tuned:
        text += f" nats per token ({tuned / base - 1:+.0%})".replace("-", "−")
    if verdict is Verdict.UNCLEAR:
        text += ", which may be chance"
    return text


def _describe_rows(metrics: Mapping[str, Any]) -> str:
    rows, generated = int(metrics.get("rows") or 0), int(metrics.get("scored_by_generation") or 0)
    split = "test" if metrics.get("split") == "test" else "validation"
    text = f"{rows:,} {split} row{'s' if rows != 1 else ''}"
    if 0 < generated < rows:
        text += f" ({generated:,} with generated text)"
    return text


def _about(run: Mapping[str, Any], metrics: Mapping[str, Any], model: str, rows: int | None) -> str:
    settings = run.get("settings") or {}
    method = {"lora": "LoRA", "none": "full fine-tuning"}.get(str(settings.get("peft_type")), "")
    if not run:
        return f"Base model: {model}."
    text = f"{model}, tuned{' with ' + method if method else ''}"
    if metrics.get("adapted_layers"):
        text += f" on the layers {metrics['adapted_layers']},"
    kind = str(run.get("kind") or "")
    if kind:
        text += f" on {'' if rows is None else f'{rows:,} '}{_KINDS.get(kind, kind + ' rows')}"
    if metrics.get("steps") is not None:
        text += f" for {metrics['steps']:,} steps"
        if metrics.get("epochs") is not None:
            text += f" ({metrics['epochs']:.3g} epochs)"
    if metrics.get("stopped") in _STOPPED:
        text += f"; {_STOPPED[metrics['stopped']]}"
    return text + "."


def _describe_unscored(metrics: Mapping[str, Any], curves: Curves, failure: str) -> tuple[str, str]:
    if failure:
        return "The run failed", "It failed before the tuned model was scored; see the error below."
    if metrics.get("stopped") == "interrupted":
        return "Stopped", f"The run was stopped after {metrics['steps']:,} steps; its model was kept, and not scored."
    if metrics:
        return "Not scored", "No held-out rows were scored with both models, so there is no comparison."
    if curves.loss:
        step, loss = curves.loss[-1]
        return "Not finished", f"The last logged step is {step:,.0f}, with a training loss of {format_metric(loss)}."
    return "Not finished", "No training step has been logged."
