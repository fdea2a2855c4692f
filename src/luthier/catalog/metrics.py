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


METRICS: dict[str, Metric] = {
    name: Metric(name=name, label=label, higher_is_better=higher, needs_generation=generated, meaning=meaning)
    for name, label, higher, generated, meaning in (
        ("loss", "loss", False, False, "nats per completion token"),
        ("perplexity", "perplexity", False, False, "exp(loss); 1 is certainty"),
        ("token_accuracy", "token accuracy", True, False, "share of completion tokens predicted correctly"),
        ("rouge1", "ROUGE-1", True, True, "words shared with the reference"),
        ("rouge2", "ROUGE-2", True, True, "word pairs shared with the reference"),
        ("rougeL", "ROUGE-L", True, True, "longest common subsequence of words"),
        ("rougeLsum", "ROUGE-Lsum", True, True, "ROUGE-L line by line"),
        ("exact_match", "exact match", True, True, "generated text equals the reference, ignoring outer white space"),
        ("answer_match", "answer match", True, True, "the answer that answer_pattern finds equals the reference's"),
        ("json_match", "JSON match", True, True, "the JSON value at the end equals the reference's"),
        ("f1", "F1 (macro)", True, True, "mean F1 over the labels, at most 20 of them"),
    )
}
