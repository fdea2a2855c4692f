"""Hugging Face's Trainer and TRL's SFTTrainer as contenders: their own `train()`, held where a step begins.

It runs in the peers' interpreter and imports nothing of Luthier. `python -m bench.field.trainer_run CASE`, a JSON file;
its `style` names one of STYLES.

    shipped   the settings that the library has when nobody sets any
    tuned     what its documentation advises for speed: packing or batches of like length, no activation checkpointing,
              bf16 compute over fp32 master weights (LoRA: over bf16 weights)
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.field.gate import Gate, versions
from bench.field.line import Line

_STEPS = 1_000_000  # more than anybody waits for


class Held(transformers.TrainerCallback):
    """Holds the trainer where a step begins."""

    def __init__(self, line: Line, pairs: bool) -> None:
        self._gate = Gate(line, self._facts)
        self._pairs = pairs
        self._trained: set[str] = set()
        self._loss = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._trained:
            self._trained = {str(each.dtype) for each in kwargs["model"].parameters() if each.requires_grad}
        self._gate.hold(self._loss)

    def count(self, inputs: Any, loss: Any) -> None:
        """Add up what a step was given."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        labelled = int((inputs["labels"] != -100).sum())
        read = int(ids.numel() if mask is None else mask.sum())
        self._gate.count(read + (labelled if "decoder_input_ids" in inputs or self._pairs else 0), labelled)
        self._loss = float(loss)

    def _facts(self) -> dict[str, Any]:
        return {"trains": sorted(self._trained)} | versions(("torch", "transformers", "peft", "trl", "accelerate"))


def _counted(family: Any, held: Held) -> Any:
    """The trainer's class, which tells the callback what each step was given; it changes nothing."""

    class Counted(family):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
            kept = dict(inputs)
            loss = super().training_step(model, inputs, *others, **named)
            held.count(kept, loss)
            return loss

    Counted.__name__ = family.__name__
    return Counted


def _rows(case: dict[str, Any]) -> Any:
    with open(case["ids"], encoding="utf-8") as handle:
        return importlib.import_module("datasets").Dataset.from_list([json.loads(line) for line in handle])


def _arguments(case: dict[str, Any]) -> dict[str, Any]:
    """What any run needs: a place to write, no reports, no end; nothing that bears on speed."""
    return {"output_dir": str(Path(case["work"]) / case["style"]), "max_steps": _STEPS, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available()}  # fmt: skip


def _adapter(case: dict[str, Any]) -> Any:
    peft = importlib.import_module("peft")
    return peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear",
                           task_type="SEQ_2_SEQ_LM" if case["pairs"] else "CAUSAL_LM")  # fmt: skip


def _hugging_face(case: dict[str, Any], held: Held, tuned: bool) -> Any:
    """The Trainer on a model as `from_pretrained` gives it (in the stored bf16); tuned, as the text above says."""
    family: Any = transformers.AutoModelForSeq2SeqLM if case["pairs"] else transformers.AutoModelForCausalLM
    lora = case["method"] == "lora"
    kinds = {"dtype": torch.bfloat16 if lora else torch.float32} if tuned else {}
    model = family.from_pretrained(case["model"], **kinds)
    if lora:
        model = importlib.import_module("peft").get_peft_model(model, _adapter(case))
    settings: dict[str, Any] = {"per_device_train_batch_size": case["rows"]}
    if tuned:
        settings |= {"bf16": True, "train_sampling_strategy": "group_by_length"}
    name = "Seq2SeqTrainer" if case["pairs"] else "Trainer"
    arguments = getattr(transformers, "Seq2SeqTrainingArguments" if case["pairs"] else "TrainingArguments")
    tokenizer = transformers.AutoTokenizer.from_pretrained(case["model"])
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model if case["pairs"] else None)
    return _counted(getattr(transformers, name), held)(
        model=model, args=arguments(**_arguments(case), **settings), train_dataset=_rows(case),
        data_collator=collator, processing_class=tokenizer, callbacks=[held],
    )  # fmt: skip


def _trl(case: dict[str, Any], held: Held, tuned: bool) -> Any:
    """TRL given the model's folder, which it loads itself (in fp32); tuned LoRA gives it bf16 weights."""
    trl = importlib.import_module("trl")
    lora = case["method"] == "lora"
    settings: dict[str, Any] = {"per_device_train_batch_size": case["rows"]}
    if tuned:
        length = min(1024, case["tokens"])
        settings = {"packing": True, "max_length": length, "per_device_train_batch_size": case["tokens"] // length,
                    "gradient_checkpointing": False, "bf16": True}  # fmt: skip
        settings["model_init_kwargs"] = {"dtype": "bfloat16" if lora else "float32"}
    return _counted(trl.SFTTrainer, held)(
        model=case["model"], args=trl.SFTConfig(**_arguments(case), **settings), train_dataset=_rows(case),
        peft_config=_adapter(case) if lora else None, callbacks=[held],
    )  # fmt: skip


STYLES: dict[str, Callable[[dict[str, Any], Held], Any]] = {
    "hf-shipped": lambda case, held: _hugging_face(case, held, tuned=False),
    "hf-tuned": lambda case, held: _hugging_face(case, held, tuned=True),
    "trl-shipped": lambda case, held: _trl(case, held, tuned=False),
    "trl-tuned": lambda case, held: _trl(case, held, tuned=True),
}


def main() -> None:
    """Run until the coordinator is done."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    line = Line()
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    STYLES[case["style"]](case, Held(line, case["pairs"])).train()


if __name__ == "__main__":
    main()
