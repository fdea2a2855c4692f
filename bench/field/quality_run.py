"""One recipe of recipes.yaml through TRL's SFTTrainer, and the held-out loss before and after.

It runs in the peers' interpreter and imports nothing of Luthier: `python -m bench.field.quality_run CASE ANSWER`, two
JSON files. All contenders get the same token ids; the loss is in nats per completion token, rows scored one by one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.field.gate import versions


def _read(path: str) -> list[dict[str, list[int]]]:
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


@torch.no_grad()
def held_out_loss(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Nats per completion token over all rows."""
    model.eval()
    nats, tokens = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor(row[name], device=model.device)[None] for name in ("input_ids", "labels"))
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1).float()
        nats += float(torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum"))
        tokens += int((labels[:, 1:] != -100).sum())
    return nats / tokens


def main() -> None:
    """Train and score."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    torch.set_num_threads(case["threads"])
    trl, peft, datasets = (importlib.import_module(name) for name in ("trl", "peft", "datasets"))
    recipe, rows, test = case["recipe"], _read(case["train"]), _read(case["test"])
    model = transformers.AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32)
    base = held_out_loss(model, test)
    # Neither changes what is computed: no activation checkpointing, and float32 like Luthier's own run.
    arguments = trl.SFTConfig(
        output_dir=case["work"], num_train_epochs=case["epochs"], seed=case["seed"], report_to="none", bf16=False,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, max_length=None,
        use_cpu=not torch.cuda.is_available(), **recipe["training"],
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(case["model"]),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", **recipe["adapter"]),
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    answer = {
        "base_loss": base, "steps": trainer.state.global_step, "seconds": time.perf_counter() - started,
        "loss": held_out_loss(trainer.model, test),
        "targets": sorted(trainer.model.peft_config["default"].target_modules),
        "versions": versions(("trl", "peft", "transformers", "torch")),
    }  # fmt: skip
    Path(sys.argv[2]).write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main()
