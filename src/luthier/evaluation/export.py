"""`luthier export`: writes a run's adapter or its merged model.

An adapter trained on a quantized base is merged into the unquantized base, so the exported model differs from the
trained one. The difference in loss on the run's held-out rows is measured, printed and stored in the provenance.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from luthier.catalog.hyperparameters import parse
from luthier.catalog.shape import context_length
from luthier.data.prepare import prepare
from luthier.data.settings import DataSettings
from luthier.data.template import Template
from luthier.data.tokenize import Tokenizer
from luthier.errors import LuthierError, UserError
from luthier.evaluation.compare import compute_metrics
from luthier.evaluation.held_out import HeldOutScorer, ScoreSettings
from luthier.home import cache_root
from luthier.jobfolder import JobFolder
from luthier.weights.export import export_adapter, export_merged, merge_model, require_empty_folder
from luthier.weights.load import find_device
from luthier.weights.model import Model
from luthier.weights.resolved_model import ResolvedModel, resolve_model

MAX_ROWS = 64  # scored by both models, on the CPU


def export(request: dict[str, Any], console: Console) -> None:
    """Export the run named in the request: {"run", "form": "merged" | "adapter", "out"}."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    target, out = resolve_model(request["run"], say), Path(request["out"])
    if target.artifact is None:
        raise UserError(f"{request['run']}: a base model, not a run; nothing to export")
    if request["form"] == "adapter":
        export_adapter(target.artifact, out)
    else:
        require_empty_folder(out)
        device, dtype = find_device("cpu"), target.dtype or torch.float32
        provenance = {name: value for name, value in target.provenance.items() if name != "quantization"}
        if target.quantization is None:
            model = merge_model(target.load(device, dtype))
        else:
            model, comparison = _merge_unquantized(target, device, dtype)
            say(_describe_merge(comparison))
            provenance["merge"] = comparison
        export_merged(model, target.artifact, target.base, out, provenance)
    say(f"exported  {out}")


def _merge_unquantized(target: ResolvedModel, device: torch.device, dtype: torch.dtype) -> tuple[Model, dict[str, Any]]:
    """Return the merged model and the `merge` block of its provenance; losses in nats per completion token."""
    comparison: dict[str, Any] = {"trained_on": target.provenance["quantization"], "base": "unquantized"}
    scorer: HeldOutScorer | None = None
    try:
        split, scorer = _held_out_scorer(target)
        loss = _loss(target.load(device, dtype), scorer)
        comparison |= {"split": split, "rows": len(scorer.rows), "loss_trained": loss}
    except (LuthierError, OSError) as error:
        comparison["not_measured"] = str(error).splitlines()[0]
    model = merge_model(target.load(device, dtype, full_precision=True))
    if scorer is not None and "loss_trained" in comparison:
        loss = _loss(model, scorer)
        comparison |= {"loss_merged": loss, "difference": loss - comparison["loss_trained"]}
    return model, comparison


def _held_out_scorer(target: ResolvedModel) -> tuple[str, HeldOutScorer]:
    """Return the split's name and a scorer of the run's test rows, or validation rows. UserError if there are none."""
    assert target.artifact is not None
    folder, provenance = JobFolder(target.artifact.parent), target.provenance
    folder.read_spec()
    channels = folder.channels()
    if "training" not in channels:
        raise UserError(f"the run's training data not found in {folder.channel('training')}")
    values = parse({}, provenance["settings"])
    tokenizer = Tokenizer.load(target.base, target.chat_template, target.chat_date)
    template = provenance.get("template")
    settings = DataSettings.from_hyperparameters(
        provenance["kind"], values, provenance["given"], target.entry, context_length(target.base)
    )
    settings = replace(settings, template=Template.from_json(template) if template else None)
    prepared = prepare(channels, settings, tokenizer, cache_root())
    if prepared.file_hashes != provenance["data"]["files"]:
        raise UserError("the run's data files have changed since training")
    prepared.split.verify(folder.split)
    splits = {"test": prepared.split.test, "validation": prepared.split.validation}
    name = next((name for name, rows in splits.items() if len(rows)), None)
    if name is None:
        raise UserError("the run has no held-out rows")
    drawn = np.random.default_rng(0).permutation(splits[name])[:MAX_ROWS]
    score_settings = ScoreSettings(
        generation_rows=0, seed=0,
        rows_per_batch=int(values["per_device_eval_batch_size"] or 1), packing=bool(values["packing"]),
    )  # fmt: skip
    return name, HeldOutScorer(prepared, tokenizer, np.sort(drawn), score_settings)


def _loss(model: Model, scorer: HeldOutScorer) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        scores = Path(scratch) / "scores.jsonl"
        scorer.score(model, scores, lambda count: None)
        return float(compute_metrics(scores)["loss"])


def _describe_merge(comparison: dict[str, Any]) -> str:
    trained_base = f"the {comparison['trained_on']['bits']}-bit base used in training"
    if "not_measured" in comparison:
        reason = comparison["not_measured"]
        return f"merged into the unquantized base, not {trained_base}; the difference was not measured: {reason}"
    return (
        f"merged into the unquantized base: loss {comparison['loss_merged']:.4f} on {comparison['rows']} "
        f"{comparison['split']} rows, {comparison['loss_trained']:.4f} on {trained_base} "
        f"(difference {comparison['difference']:+.4f})"
    )
