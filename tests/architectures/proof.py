"""What is proved of one cell of the matrix: an architecture tuned by a method on a kind of data.

    train     the loss of the second half of the steps is below that of the first
    reload    the artifact, read by transformers and peft alone, gives the trained model's logits
    merge     so does the adapter merged into its base
    generate  batched answers of the reloaded model are Hugging Face's own, one prompt at a time
    resume    a run that goes on from a checkpoint ends with the uninterrupted run's weights, bit for bit

Quantized bases are read back by Luthier instead, and their merge is into the base in full precision, so it is only
close. `prove` raises AssertionError with what failed; a cell that is refused raises the refusal.
"""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import write_model, write_rows
from torch import Tensor
from training.job_folders import lay_out, lines, run
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from luthier.jobfolder import JobFolder
from luthier.weights import artifact
from luthier.weights.export import ServedPrompt, export_merged
from luthier.weights.generate import generate
from luthier.weights.lora import merge_adapter
from luthier.weights.model import Model
from luthier.weights.resolved_model import resolve_model

METHODS: dict[str, dict[str, Any]] = {
    "full": {"peft_type": "none"},
    "LoRA": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 16},
    "DoRA": {"use_dora": True},
    "int8 + LoRA": {"int8_quantization": True},
    "NF4 + LoRA": {"bits": 4},
}
QUANTIZED = ("int8 + LoRA", "NF4 + LoRA")
KINDS = ("instruction", "autopilot", "chat", "domain")
PROBE = torch.arange(5, 45).reshape(2, 20)
PROMPTS = [[9, 41, 7], [200, 11, 30, 31, 32, 60, 99], [5, 5], list(range(40, 62))]
SETTINGS = {"epoch": 2, "eval_steps": 4, "save_steps": 4, "save_total_limit": 9, "learning_rate": 0.01, "score_rows": 0,
            "early_stopping_patience": -1}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One proof."""

    architecture: str
    method: str
    kind: str

    def __str__(self) -> str:
        return f"{self.architecture} / {self.method} / {self.kind}"


def prove(cell: Cell, place: Path, *, resume: bool = True) -> None:
    """Prove all that the module's docstring lists, in the empty folder `place`; without `resume`, all but that."""
    base = write_model(place / "base", cell.architecture, dropout=0.1)
    folder = lay_out(place / "run", base, write_kind(place / "rows", cell.kind), **_settings(cell))
    trained = run_for_logits(folder)
    losses = [line["loss"] for line in lines(folder) if "loss" in line]
    half = len(losses) // 2
    assert fmean(losses[half:]) < fmean(losses[:half]), "the loss did not fall"
    _reloaded(cell, folder, base, trained, place)
    if resume:
        _resumed(folder, place / "resumed")


def _settings(cell: Cell) -> dict[str, Any]:
    return SETTINGS | METHODS[cell.method] | {"kind": cell.kind}


def write_kind(folder: Path, kind: str) -> Path:
    """A folder of rows of a kind."""
    folder.mkdir(parents=True)
    rows = [json.loads(line) for line in write_rows(folder / "train.jsonl", 26).read_text("utf-8").splitlines()]
    if kind == "instruction":
        return folder
    (folder / "train.jsonl").unlink()
    if kind == "chat":
        turns = [
            {"messages": [{"role": "user", "content": row["instruction"]},
                          {"role": "assistant", "content": row["response"]}]} for row in rows
        ]  # fmt: skip
        (folder / "train.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns), "utf-8")
    elif kind == "domain":
        text = "\n".join(f"{row['instruction']} {row['context']} {row['response']}" for row in rows * 40)
        (folder / "corpus.txt").write_text(text, "utf-8")
    else:
        with open(folder / "train.csv", "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["input", "output"])
            writer.writerows([row["instruction"], row["response"]] for row in rows)
    return folder


def run_for_logits(folder: JobFolder, resume: bool = False) -> Tensor:
    """Run the job; return the trained model's logits of PROBE, taken before it is saved."""
    said: list[Tensor] = []
    save = artifact.save_weights

    def listen(model: Model, *rest: Any) -> None:
        said.append(logits_of(model.hf_model))
        save(model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "save_weights", listen)
        run(folder, resume)
    return said[0]


@torch.no_grad()
def logits_of(network: Any) -> Tensor:
    """Logits of PROBE by the network's own forward."""
    start = {"decoder_input_ids": PROBE.flip(0)} if network.config.is_encoder_decoder else {}
    found: Tensor = network(input_ids=PROBE, use_cache=False, **start).logits
    return found.float().clone()


def load_plainly(folder: Path, base: Path) -> Any:
    """An artifact as any user of transformers and peft loads it."""
    stored = json.loads((base / "config.json").read_text("utf-8"))
    family: Any = AutoModelForSeq2SeqLM if stored.get("is_encoder_decoder") else AutoModelForCausalLM
    if not (folder / "adapter_config.json").is_file():
        return family.from_pretrained(folder).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # PEFT 0.21
        model: Any = PeftModel.from_pretrained(family.from_pretrained(base), str(folder)).eval()
    return model.get_base_model()


def _reloaded(cell: Cell, folder: JobFolder, base: Path, trained: Tensor, place: Path) -> None:
    target = resolve_model(str(folder.root), lambda _: None)
    cpu = torch.device("cpu")
    ours = target.load(cpu, torch.float32)
    torch.testing.assert_close(logits_of(ours.hf_model), trained, msg=lambda text: f"Luthier's reload: {text}")
    if (
        cell.method == "int8 + LoRA"
    ):  # outlier columns are those of the rows in a batch, so answers are those of one row
        for prompt in PROMPTS:
            _generates(ours, [prompt])
    else:
        _generates(ours, PROMPTS)
    if cell.method in QUANTIZED:
        return
    plain = load_plainly(folder.model, base)
    torch.testing.assert_close(logits_of(plain), trained, msg=lambda text: f"plain reload: {text}")
    whole = Model(merge_adapter(ours), ours.dtype, ours.device) if ours.has_adapter else ours
    export_merged(whole, folder.model, base, place / "merged", target.provenance, ServedPrompt(chat_template=None))
    merged = load_plainly(place / "merged", base)
    torch.testing.assert_close(logits_of(merged), trained, rtol=1e-4, atol=1e-4, msg=lambda text: f"merged: {text}")


def _generates(model: Model, prompts: list[list[int]]) -> None:
    """Answers of a batch are those of each prompt alone, by Hugging Face's generate."""
    most, pad = 12, 3
    found = generate(model, prompts, stop_ids=[0], pad_id=pad, max_new_tokens=most)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        network: Any = model.network
        alone = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, eos_token_id=[0],
            pad_token_id=pad,
        )[0].tolist()  # fmt: skip
        new = alone[1:] if model.is_encoder_decoder else alone[len(prompt) :]
        assert answer.ids == [token for token in new if token != 0], f"generated {answer.ids}, alone {new}"


def _resumed(whole: JobFolder, place: Path) -> None:
    """Take a finished run back to its checkpoint of step 4 and let it go on."""
    shutil.copytree(whole.root, place)
    folder = JobFolder(place)
    assert (folder.checkpoints / "step-000004").is_dir()
    for checkpoint in folder.checkpoints.glob("step-*"):
        if checkpoint.name != "step-000004":
            shutil.rmtree(checkpoint)
    shutil.rmtree(folder.model)
    run_for_logits(folder, resume=True)
    stored = [next(run.model.glob("*.safetensors")) for run in (whole, folder)]
    expected, found = (load_file(path) for path in stored)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"resumed: {name} differs"


__all__ = [
    "KINDS",
    "METHODS",
    "QUANTIZED",
    "Cell",
    "load_plainly",
    "logits_of",
    "prove",
    "run_for_logits",
    "write_kind",
]
