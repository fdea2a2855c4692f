"""What is proved of a text class of transformers, from its own tiny config, and the table of it in the docs.

    base     each row's loss is that of Hugging Face's plain forward, to 1e-5
    train    three steps on the same rows by LoRA's defaults, and in full: the loss falls
    reload   the artifact, read by transformers and peft alone, gives the trained model's logits

`swept.json` is written by the complete run (test_every_class.py, marked slow); docs/models.md shows it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from architectures.matrix import PAGE
from architectures.proof import load_plainly, run_for_logits
from architectures.proof import logits_of as logits
from architectures.test_forward import batch_of, model_of, random_rows, reference_loss
from architectures.tiny_classes import EXCEPTIONS, network_of_type
from tiny_models import write_rows, write_tokenizer
from training.job_folders import lay_out, lines

from luthier.layers.attention import PACKABLE_ARCHITECTURES

SWEPT = Path(__file__).parent / "swept.json"
BEGIN, END = "<!-- sweep:begin -->", "<!-- sweep:end -->"


def prove_class(model_type: str, place: Path) -> dict[str, str]:
    """Prove all that the module's docstring lists, in the empty folder `place`; return the class's row of the table."""
    network = network_of_type(model_type)
    for row in random_rows([7, 2, 40, 3, 22]):
        loss = model_of(network).scores(batch_of(network, [row], packed=False)).loss_N.sum()
        torch.testing.assert_close(
            loss, reference_loss(network, [row]).detach(), rtol=1e-5, atol=1e-5, msg=lambda text: f"base loss: {text}"
        )
    base = place / "base"
    network.save_pretrained(str(base))
    write_tokenizer(base, closing=network.config.is_encoder_decoder)
    write_rows(place / "rows" / "train.jsonl", 16)
    _tuned(place, "none")
    stored = json.loads((_tuned(place, "lora") / "adapter_config.json").read_text("utf-8"))
    targets = [*stored["target_modules"], *(stored["target_parameters"] or ())]
    assert not any(set(name.split(".")) & {"experts", "expert"} for name in targets), f"experts unasked: {targets}"
    names = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in targets})
    return {"class": type(network).__name__, "lora": ", ".join(names)}


def _tuned(place: Path, method: str) -> Path:
    """Train three steps by the method, check the loss and the artifact, and return the artifact's folder."""
    folder = lay_out(
        place / method, place / "base", place / "rows", peft_type=method, max_steps=3, epoch=3,
        per_device_train_batch_size=16, lora_dropout=0.0, score_rows=0, load_best_model_at_end=False,
    )  # fmt: skip
    trained = run_for_logits(folder)
    losses = [line["loss"] for line in lines(folder) if "loss" in line]
    assert losses[-1] < losses[0], f"{method}: the loss did not fall: {losses}"
    plain = load_plainly(folder.model, place / "base")
    torch.testing.assert_close(logits(plain), trained, msg=lambda text: f"{method}, plain reload: {text}")
    return folder.model


def render(outcomes: dict[str, dict[str, str]]) -> str:
    """The section of docs/models.md, between its marks."""
    table = ["| model_type | class | rows | LoRA's default layers |", "|---|---|---|---|"]
    for model_type, row in outcomes.items():
        rows = "packed" if row["class"] in PACKABLE_ARCHITECTURES else "padded"
        table.append(f"| {model_type} | `{row['class']}` | {rows} | {row['lora']} |")
    reasons: dict[str, list[str]] = {}
    for model_type, reason in EXCEPTIONS.items():
        reasons.setdefault(reason, []).append(f"`{model_type}`")
    left_out = [f"- {reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return "\n".join([BEGIN, *table, "", "Left out:", "", *left_out, END])


def write(outcomes: dict[str, dict[str, str]]) -> None:
    """Keep the outcomes of a complete run, and show them in docs/models.md."""
    SWEPT.write_text(json.dumps(outcomes, indent=0, sort_keys=True) + "\n", "utf-8")
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + render(read()) + rest.partition(END)[2], "utf-8")


def read() -> dict[str, Any]:
    """The outcomes of the last complete run."""
    outcomes: dict[str, Any] = json.loads(SWEPT.read_text("utf-8"))
    return outcomes
