"""The evaluation metrics of metrics.json: name, label, direction and meaning, in the order in which they are shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric; `needs_generation`: it compares a generated text with its reference."""

    name: str
    label: str
    higher_is_better: bool
    needs_generation: bool
    meaning: str


_LIKELIHOOD = (
    ("loss", "loss", "nats per completion token"),
    ("perplexity", "perplexity", "exp(loss); 1 is certainty"),
    ("token_accuracy", "token accuracy", "share of completion tokens predicted correctly"),
)
_GENERATION = (
    ("rouge1", "ROUGE-1", "words shared with the reference"),
    ("rouge2", "ROUGE-2", "word pairs shared with the reference"),
    ("rougeL", "ROUGE-L", "longest common subsequence of words"),
    ("rougeLsum", "ROUGE-Lsum", "ROUGE-L line by line"),
    ("exact_match", "exact match", "generated text equals the reference, ignoring outer white space"),
    ("f1", "F1 (macro)", "mean F1 over the labels, at most 20 of them"),
)
METRICS: dict[str, Metric] = {
    name: Metric(
        name=name,
        label=label,
        higher_is_better=name not in ("loss", "perplexity"),
        needs_generation=needs_generation,
        meaning=meaning,
    )
    for metrics, needs_generation in ((_LIKELIHOOD, False), (_GENERATION, True))
    for name, label, meaning in metrics
}
