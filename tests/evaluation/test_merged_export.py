"""`luthier export`: what comes out, and what merging an adapter of a quantized base has cost."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from finished_runs import FinishedRun, FinishedRuns
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoTokenizer

from luthier.data.template import Template
from luthier.data.tokenize import Tokenizer
from luthier.errors import UserError
from luthier.evaluation import export as room
from luthier.evaluation.export import export
from luthier.weights.resolved_model import resolve_model


@pytest.fixture(scope="module")
def quantized(finished: FinishedRuns) -> FinishedRun:
    """A run on a 4-bit base that held rows out."""
    rows = finished.get().rows
    settings = {"bits": "4", "validation_split_ratio": "0.25", "learning_rate": "0.01", "epoch": "2", "max_steps": "-1"}
    return finished.train("quantized", finished.base("llama"), rows, **settings)


def exported(run: Path, out: Path, form: str = "merged", *, plain: bool = False, fp32: bool = False) -> str:
    screen = io.StringIO()
    request = {"run": str(run), "form": form, "out": str(out), "plain": plain, "fp32": fp32}
    export(request, Console(file=screen, width=400))
    return screen.getvalue()


def provenance(folder: Path) -> dict[str, Any]:
    provenance_json: dict[str, Any] = json.loads((folder / "luthier.json").read_text("utf-8"))
    return provenance_json


def test_a_merged_export_says_what_it_cost(quantized: FinishedRun, tmp_path: Path) -> None:
    root = quantized.folder.root
    output = exported(root, tmp_path / "out")
    merge = provenance(tmp_path / "out")["merge"]
    trained = json.loads((root / "metrics.json").read_text("utf-8"))["tuned"]["loss"]
    assert (merge["split"], merge["rows"], merge["base"]) == ("validation", 6, "unquantized")
    assert merge["loss_trained"] == pytest.approx(trained, abs=1e-6)  # as it was when it was trained
    assert merge["difference"] == pytest.approx(merge["loss_merged"] - merge["loss_trained"])
    assert 0 < abs(merge["difference"]) < 0.5
    merged, trained = f"{merge['loss_merged']:.4f}", f"{merge['loss_trained']:.4f}"
    assert f"loss {merged} on 6 validation rows, {trained} on the 4-bit base" in output
    assert f"(difference {merge['difference']:+.4f})" in output
    assert (merge["trained_on"]["bits"], merge["trained_on"]["quant_type"]) == (4, "nf4")
    assert "exported" in output
    assert "quantization" not in provenance(tmp_path / "out")


def test_the_export_is_the_model_that_was_measured(quantized: FinishedRun, tmp_path: Path) -> None:
    exported(quantized.folder.root, tmp_path / "out")
    target = resolve_model(str(tmp_path / "out"), lambda _: None)
    assert (target.adapter, target.quantization) == (None, None)
    _, rows = room._held_out_scorer(resolve_model(str(quantized.folder.root), lambda _: None))
    model = target.load(torch.device("cpu"), torch.float32)
    assert room._loss(model, rows) == pytest.approx(provenance(tmp_path / "out")["merge"]["loss_merged"], abs=1e-6)


def test_the_adapter_keeps_the_record_of_its_base(quantized: FinishedRun, tmp_path: Path) -> None:
    exported(quantized.folder.root, tmp_path / "out", "adapter")
    target = resolve_model(str(tmp_path / "out"), lambda _: None)
    assert target.quantization == resolve_model(str(quantized.folder.root), lambda _: None).quantization
    assert target.quantization is not None
    assert target.quantization.bits == 4


def moved(run: FinishedRun, place: Path) -> Path:
    """A copy of a run whose rows are a copy of their own."""
    shutil.copytree(run.folder.root, place / "run", symlinks=True)
    shutil.copytree(run.rows, place / "rows")
    link = place / "run" / "input" / "data" / "training"
    link.unlink()
    link.symlink_to(place / "rows")
    return place / "run"


@pytest.mark.parametrize("how", ["gone", "changed", "resplit", "artifact"])
def test_without_the_runs_rows_that_is_said(quantized: FinishedRun, tmp_path: Path, how: str) -> None:
    run = moved(quantized, tmp_path)
    expected = {
        "gone": "the run's training data not found in", "changed": "have changed since training",
        "resplit": "rows differ from those of the current data and settings", "artifact": "not a Luthier run",
    }[how]  # fmt: skip
    if how == "gone":
        shutil.rmtree(tmp_path / "rows")
    elif how == "changed":
        with open(tmp_path / "rows" / "train.jsonl", "a") as handle:
            handle.write('{"instruction": "a", "context": "b", "response": "c"}\n')
    elif how == "resplit":
        split = json.loads((run / "split.json").read_text("utf-8"))
        (run / "split.json").write_text(json.dumps(split | {"validation": split["validation"][1:]}))
    else:
        run = run / "model"
        shutil.copytree(run, tmp_path / "alone")
        run = tmp_path / "alone"
    output = exported(run, tmp_path / "out")
    assert "the difference was not measured" in output
    assert expected in output
    merge = provenance(tmp_path / "out")["merge"]
    assert expected in merge["not_measured"]
    assert not {"loss_merged", "difference"} & merge.keys()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_run_that_held_no_rows_out(finished: FinishedRuns, tmp_path: Path) -> None:
    run = finished.train("none-held", finished.base("llama"), finished.get().rows, bits="4", validation_split_ratio="0")
    assert "the difference was not measured: the run has no held-out rows" in exported(
        run.folder.root, tmp_path / "out"
    )


def test_a_run_on_whole_weights_has_nothing_to_say(finished: FinishedRuns, tmp_path: Path) -> None:
    output = exported(finished.get().folder.root, tmp_path / "out")
    assert "loss" not in output
    assert "merge" not in provenance(tmp_path / "out")
    assert provenance(tmp_path / "out")["merged"] is True


def test_a_base_model_is_refused(finished: FinishedRuns, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a base model, not a run; nothing to export"):
        exported(finished.get().base, tmp_path / "out")


def test_the_door_takes_a_request(finished: FinishedRuns, tmp_path: Path) -> None:
    run, out = str(finished.get().folder.root), str(tmp_path / "out")
    request = {"run": run, "form": "merged", "out": out, "plain": False, "fp32": False}
    done = subprocess.run(
        [sys.executable, "-m", "luthier.evaluation", "export"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"exported  {tmp_path / 'out'}" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_the_chat_template_of_a_template_run_gives_the_ids_of_training(
    finished: FinishedRuns, tmp_path: Path, form: str
) -> None:
    run = finished.get()
    output = exported(run.folder.root, tmp_path / "out", form)
    assert "chat template: one user message becomes the prompt of the run's template" in output
    target = resolve_model(str(run.folder.root), lambda _: None)
    template = Template.from_json(target.provenance["template"])
    tokenizer = Tokenizer.load(target.base)
    for message in ("Name a colour.", "It's {odd} \\n {{ 'text' }}", " Zwei\nZeilen "):
        prompt = template.render_prompt({"instruction": message, "context": ""})
        trained = [*tokenizer.prefix_ids, *tokenizer.encode(prompt.pieces)]
        plain = AutoTokenizer.from_pretrained(tmp_path / "out")
        chat = [{"role": "user", "content": message}]
        assert plain.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == trained
    with pytest.raises(jinja2.TemplateError, match="send one user message"):
        plain.apply_chat_template([{"role": "system", "content": "Be brief."}, *chat])
    if form == "merged":
        settings = json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8"))
        assert settings["eos_token_id"] in (tokenizer.stop_ids, tokenizer.stop_ids[0])


def test_a_template_of_other_fields_leaves_the_chat_template_out(finished: FinishedRuns, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = [{"question": f"Is {n} even?", "passage": f"About {n}.", "answer": "yes"} for n in range(12)]
    (rows / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (rows / "template.json").write_text(json.dumps({"prompt": "{passage} {question}", "completion": "{answer}"}))
    run = finished.train("two-fields", finished.base("llama"), rows)
    output = exported(run.folder.root, tmp_path / "out", "adapter")
    assert "no chat template: a message cannot fill the fields of the run's prompt (passage, question)" in output
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_a_16_bit_merge_says_what_rounding_cost_and_fp32_rounds_nothing(finished: FinishedRuns, tmp_path: Path) -> None:
    settings = {"bf16": "True", "validation_split_ratio": "0.25", "learning_rate": "0.01", "epoch": "2"}
    run = finished.train("bf16", finished.base("llama"), finished.get().rows, **settings)
    output = exported(run.folder.root, tmp_path / "rounded")
    merge = provenance(tmp_path / "rounded")["merge"]
    assert merge["dtype"] == "bfloat16"
    assert 0 < abs(merge["difference"]) < 0.1
    assert f"loss {merge['loss_merged']:.4f} on 6 validation rows, {merge['loss_trained']:.4f} on the adapter" in output
    assert "; --fp32 rounds nothing" in output
    assert "rounded" not in exported(run.folder.root, tmp_path / "exact", fp32=True)
    weights = load_file(tmp_path / "exact" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert "merge" not in provenance(tmp_path / "exact")


def test_an_adapter_export_says_its_scale(finished: FinishedRuns, tmp_path: Path) -> None:
    root = finished.get().folder.root
    assert "the adapter is scaled by 8 (lora_alpha, r); for programs that ignore this, use --plain" in exported(
        root, tmp_path / "usual", "adapter"
    )
    assert "the adapter's scale, 8, is multiplied into its weights" in exported(
        root, tmp_path / "plain", "adapter", plain=True
    )
