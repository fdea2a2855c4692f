"""TRL's training script as its documentation has it, on rows in a JSONL file; it ends after its first step.

It runs in the peers' interpreter: `python -m bench.field.trl_script MODEL ROWS OUT`, and prints the time of day then.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
import transformers
import trl  # type: ignore[import-not-found,unused-ignore]
from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
from peft import LoraConfig


class Stop(transformers.TrainerCallback):
    """Says when the first optimizer step is done, and ends the process."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        print(f"first step at {time.time()}", flush=True)
        os._exit(0)


model, rows, out = sys.argv[1:4]
trainer = trl.SFTTrainer(
    model=model,
    args=trl.SFTConfig(
        output_dir=out, per_device_train_batch_size=1, report_to="none", use_cpu=not torch.cuda.is_available()
    ),
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[Stop()],
)
trainer.train()
