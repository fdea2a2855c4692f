"""`luthier export`: a run's adapter, or the whole model it comes to, and what merging it has cost.

An adapter that was trained on a quantized base is merged into the base's own, unquantized weights: the model that comes
out is another one than was trained. How far it is from that is measured on rows that the run held out, and said.
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
from luthier.evaluation.compare import summarise
from luthier.evaluation.held_out import HeldOut, ScoreSettings
from luthier.home import cache_root
from luthier.jobfolder import JobFolder
from luthier.weights.export import check_empty, export_adapter, export_merged, merged
from luthier.weights.load import find_device
from luthier.weights.model import Model
from luthier.weights.target import Target, find_target

MOST_ROWS = 64  # both models score them, on the CPU


def export(request: dict[str, Any], console: Console) -> None:
    """Export the run named in the request: {"run", "form": "merged" | "adapter", "out"}."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    target, out = find_target(request["run"], say), Path(request["out"])
    if target.artifact is None:
        raise UserError(f"{request['run']}: a base model, not a run; there is nothing to export")
    if request["form"] == "adapter":
        export_adapter(target.artifact, out)
    else:
        check_empty(out)
        device, dtype = find_device("cpu"), target.dtype or torch.float32
        provenance = {name: value for name, value in target.provenance.items() if name != "quantization"}
        if target.quantization is None:
            model = merged(target.load(device, dtype))
        else:
            model, cost = _measured(target, device, dtype)
            say(_sentence(cost))
            provenance["merge"] = cost
        export_merged(model, target.artifact, target.base, out, provenance)
    say(f"exported  {out}")


def _measured(target: Target, device: torch.device, dtype: torch.dtype) -> tuple[Model, dict[str, Any]]:
    """The model to export, and the `merge` block of its provenance: losses in nats per completion token."""
    cost: dict[str, Any] = {"trained_on": target.provenance["quantization"], "base": "unquantized"}
    rows: HeldOut | None = None
    try:
        split, rows = _rows(target)
        cost |= {"split": split, "rows": len(rows.rows), "loss_trained": _loss(target.load(device, dtype), rows)}
    except (LuthierError, OSError) as error:
        cost["not_measured"] = str(error).splitlines()[0]
    model = merged(target.load(device, dtype, full_precision=True))
    if rows is not None and "loss_trained" in cost:
        loss = _loss(model, rows)
        cost |= {"loss_merged": loss, "difference": loss - cost["loss_trained"]}
    return model, cost


def _rows(target: Target) -> tuple[str, HeldOut]:
    """Rows that the run held out: of the test split where it has one. UserError when they are not to be had."""
    assert target.artifact is not None
    folder, provenance = JobFolder(target.artifact.parent), target.provenance
    folder.read_spec()
    channels = folder.channels()
    if "training" not in channels:
        raise UserError(f"the run's rows are gone from {folder.channel('training')}")
    values, tokenizer = parse({}, provenance["settings"]), Tokenizer.load(target.base, target.chat_template)
    template = provenance.get("template")
    settings = DataSettings.from_hyperparameters(
        provenance["kind"], values, provenance["given"], target.entry, context_length(target.base)
    )
    settings = replace(settings, template=Template.from_json(template) if template else None)
    prepared = prepare(channels, settings, tokenizer, cache_root())
    if prepared.file_hashes != provenance["data"]["files"]:
        raise UserError("the run's rows have changed since it was trained")
    prepared.split.verify(folder.split)
    splits = {"test": prepared.split.test, "validation": prepared.split.validation}
    split = next((name for name, rows in splits.items() if len(rows)), None)
    if split is None:
        raise UserError("the run held no rows out")
    chosen = np.random.default_rng(0).permutation(splits[split])[:MOST_ROWS]
    how = ScoreSettings(0, 0, int(values["per_device_eval_batch_size"] or 1), bool(values["packing"]))
    return split, HeldOut(prepared, tokenizer, np.sort(chosen), how)


def _loss(model: Model, rows: HeldOut) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        scores = Path(scratch) / "scores.jsonl"
        rows.score(model, scores, lambda done: None)
        return float(summarise(scores)["loss"])


def _sentence(cost: dict[str, Any]) -> str:
    bits = f"the {cost['trained_on']['bits']}-bit base that the adapter was trained on"
    if "not_measured" in cost:
        return f"merged into the unquantized base, not into {bits}; the difference was not measured: " + str(
            cost["not_measured"]
        )
    return (
        f"merged into the unquantized base: loss {cost['loss_merged']:.4f} on {cost['rows']} {cost['split']} rows, "
        f"{cost['loss_trained']:.4f} on {bits} (difference {cost['difference']:+.4f})"
    )
