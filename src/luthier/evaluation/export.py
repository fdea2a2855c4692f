"""`luthier export`: writes a run's adapter or its merged model.

An adapter trained on a quantized base is merged into the unquantized base, and merged weights of a 16-bit run are
rounded, so the exported model differs from the trained one. The difference in loss on the run's held-out rows is
measured, printed and stored in the provenance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from luthier.weights.export import ServedPrompt, export_adapter, export_merged, merge_model, require_empty_folder
from luthier.weights.load import find_device
from luthier.weights.model import Model
from luthier.weights.plain_adapter import adapter_scale
from luthier.weights.resolved_model import ResolvedModel, resolve_model

MAX_ROWS = 64  # scored by both models, on the CPU


def export(request: dict[str, Any], console: Console) -> None:
    """Export the run named in the request: {"run", "form": "merged" | "adapter", "out", "plain", "fp32"}."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    target, out = resolve_model(request["run"], say), Path(request["out"])
    if target.artifact is None:
        raise UserError(f"{request['run']}: a base model, not a run; nothing to export")
    if request["form"] == "adapter":
        export_adapter(target.artifact, out, _served_prompt(target, say), plain=request["plain"])
        say(_describe_scale(target.artifact, request["plain"]))
    else:
        require_empty_folder(out)
        provenance = {name: value for name, value in target.provenance.items() if name != "quantization"}
        trained_in = target.dtype or torch.float32
        model, comparison = _merge(target, trained_in, torch.float32 if request["fp32"] else trained_in)
        if comparison:
            say(_describe_merge(comparison))
            provenance["merge"] = comparison
        if request["fp32"]:
            provenance["dtype"] = "float32"
        export_merged(model, target.artifact, target.base, out, provenance, _served_prompt(target, say))
    say(f"exported  {out}")


def _served_prompt(target: ResolvedModel, say: Callable[[str], None]) -> ServedPrompt:
    """The chat template that makes the run's prompts; says where it is not the base's."""
    tokenizer = Tokenizer.load(target.base, target.chat_template, target.chat_date)
    stop_ids, stored = tuple(tokenizer.stop_ids), target.provenance.get("template")
    if not stored or tokenizer.encoder_decoder:
        return ServedPrompt(chat_template=tokenizer.chat_template, stop_ids=stop_ids)
    template = Template.from_json(stored)
    chat_template = template.to_chat_template(tokenizer.show(tokenizer.prefix_ids))
    if chat_template is not None:
        say("chat template: one user message becomes the prompt of the run's template")
    else:
        fields = ", ".join(template.prompt_fields)
        say(f"no chat template: a message cannot fill the fields of the run's prompt ({fields}); send rendered prompts")
    return ServedPrompt(chat_template=chat_template, stop_ids=stop_ids)


def _describe_scale(artifact: Path, is_plain: bool) -> str:
    scale = adapter_scale(artifact)
    if is_plain:
        return f"the adapter's scale, {scale:g}, is multiplied into its weights (alpha = r)"
    return f"the adapter is scaled by {scale:g} (lora_alpha, r); for programs that ignore this, use --plain"


def _merge(target: ResolvedModel, trained_in: torch.dtype, stored_in: torch.dtype) -> tuple[Model, dict[str, Any]]:
    """Return the merged model in `stored_in`, and the `merge` block of its provenance if merging changes the model.

    Losses in nats per completion token.
    """
    device = find_device("cpu")
    is_rounded = target.adapter is not None and stored_in is not torch.float32
    if target.quantization is None and not is_rounded:
        return merge_model(target.load(device, stored_in)), {}
    comparison: dict[str, Any] = {"dtype": str(stored_in).removeprefix("torch.")}
    if target.quantization is not None:
        comparison |= {"trained_on": target.provenance["quantization"], "base": "unquantized"}
    scorer: HeldOutScorer | None = None
    try:
        split, scorer = _held_out_scorer(target)
        loss = _loss(target.load(device, trained_in), scorer)
        comparison |= {"split": split, "rows": len(scorer.rows), "loss_trained": loss}
    except (LuthierError, OSError) as error:
        comparison["not_measured"] = str(error).splitlines()[0]
    model = merge_model(target.load(device, stored_in, full_precision=True))
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
    before, after = "the adapter beside its base", f"merged and rounded to {comparison['dtype']}"
    if "base" in comparison:
        before = f"the {comparison['trained_on']['bits']}-bit base used in training"
        after = "merged into the unquantized base"
    advice = "" if "base" in comparison else "; --fp32 rounds nothing"
    if "not_measured" in comparison:
        return f"{after}, not {before}; the difference was not measured: {comparison['not_measured']}{advice}"
    return (
        f"{after}: loss {comparison['loss_merged']:.4f} on {comparison['rows']} {comparison['split']} rows, "
        f"{comparison['loss_trained']:.4f} on {before} (difference {comparison['difference']:+.4f}){advice}"
    )
