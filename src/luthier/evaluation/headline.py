"""The first sentences of the report: what model, what data, what changed, with numbers.

Knows the run's records (run.json, metrics.json), not how a page looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.catalog.metrics import METRICS
from luthier.evaluation.curves import Curves
from luthier.evaluation.metric import FEW_ROWS, Verdict, shown, verdict
from luthier.evaluation.table import measured_rows

_STOPPED = {
    "completed": "run to its end",
    "max_steps": "ended by max_steps",
    "early_stopping": "ended early, when the validation loss no longer fell",
    "interrupted": "interrupted before its end",
}
_KINDS = {
    "instruction": "instruction rows",
    "autopilot": "input/output rows",
    "chat": "chats",
    "domain": "pieces of running text",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """`tone` is better, worse, unclear or unfinished; `verdict` a few words; `says` and `about` whole sentences."""

    tone: str
    verdict: str
    says: str
    about: str
    model: str
    state: str
    failure: str = ""
    tiles: list[tuple[str, str, str, str]] = field(default_factory=list)  # label, base, tuned, verdict


def headline(
    run: Mapping[str, Any],
    metrics: Mapping[str, Any],
    order: Mapping[str, Any],
    curves: Curves,
    failure: str,
    trained_rows: int | None = None,
) -> Headline:
    """Put the run into words; every argument may be empty. `trained_rows`: rows of the training split, where known."""
    model = str((run.get("model") or {}).get("name") or order.get("model") or "the base model")
    about = _about(run, metrics, model, trained_rows)
    state = str(metrics.get("stopped") or ("failed" if failure else "unfinished"))
    if not metrics.get("base") or not metrics.get("tuned"):
        return Headline("unfinished", *_unscored(metrics, curves, failure), about, model, state, failure)
    said = {name: verdict(name, _difference(metrics, name), measured_rows(metrics, name)) for name in METRICS}
    tone, words = _overall(metrics, set(said.values()))
    main = _main_metrics(metrics)
    parts = [_change(metrics, name, said[name]) for name in main]
    says = f"On {_rows(metrics)}, " + " and ".join(parts) + "." if parts else "No metric applies to these rows."
    tiles = [
        (METRICS[name].label, shown(metrics["base"][name]), shown(metrics["tuned"][name]), str(said[name]))
        for name in main
    ]
    return Headline(tone, words, says, about, model, state, failure, tiles)


def _overall(metrics: Mapping[str, Any], said: set[Verdict]) -> tuple[str, str]:
    if int(metrics.get("rows") or 0) < FEW_ROWS:
        return "unclear", "Too few held-out rows to tell"
    if {Verdict.BETTER, Verdict.WORSE} <= said:
        return "unclear", "Better in part, worse in part"
    if Verdict.BETTER in said:
        return "better", "Measurably better"
    if Verdict.WORSE in said:
        return "worse", "Measurably worse"
    return "unclear", "No clear change"


def _main_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Loss, and the text metrics that say most of this data: hits and F1 for labels, ROUGE-L for free text."""
    measured = [
        name for name in METRICS if metrics["base"].get(name) is not None and metrics["tuned"].get(name) is not None
    ]
    labels = "f1" in measured or max(metrics[model].get("exact_match") or 0 for model in ("base", "tuned")) >= 0.1
    wanted = ["loss", "exact_match" if labels else "rougeL"]
    if not set(wanted) & set(measured) - {"loss"}:
        wanted = ["loss", "token_accuracy"]
    return [name for name in wanted if name in measured]


def _change(metrics: Mapping[str, Any], name: str, said: Verdict) -> str:
    base, tuned = metrics["base"][name], metrics["tuned"][name]
    way = "stayed at" if base == tuned else "rose from" if tuned > base else "fell from"
    label = METRICS[name].label
    text = f"{label} {way} {shown(base)}" + ("" if base == tuned else f" to {shown(tuned)}")
    if name == "loss" and base > 0 and base != tuned:
        text += f" nats a token ({tuned / base - 1:+.0%})".replace("-", "−")
    if said is Verdict.UNCLEAR:
        text += ", which may be chance"
    return text


def _rows(metrics: Mapping[str, Any]) -> str:
    rows, generated = int(metrics.get("rows") or 0), int(metrics.get("scored_by_generation") or 0)
    split = "test" if metrics.get("split") == "test" else "validation"
    text = f"{rows:,} {split} row{'s' if rows != 1 else ''}"
    if 0 < generated < rows:
        text += f" ({generated:,} of them answered by generation)"
    return text


def _about(run: Mapping[str, Any], metrics: Mapping[str, Any], model: str, rows: int | None) -> str:
    settings = run.get("settings") or {}
    method = {"lora": "LoRA", "none": "full fine-tuning"}.get(str(settings.get("peft_type")), "")
    if not run:
        return f"Base model: {model}."
    text = f"{model}, tuned{' with ' + method if method else ''}"
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


def _unscored(metrics: Mapping[str, Any], curves: Curves, failure: str) -> tuple[str, str]:
    if failure:
        return "The run failed", "It ended before the tuned model was scored; the reason is below."
    if metrics:
        return "Not scored", "No held-out rows were scored under both models, so nothing shows whether it is better."
    if curves.loss:
        step, loss = curves.loss[-1]
        return "Not finished", f"The last logged step is {step:,.0f}, with a training loss of {shown(loss)}."
    return "Not finished", "No training step was logged yet."


def _difference(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = (metrics.get("difference") or {}).get(name)
    return found
