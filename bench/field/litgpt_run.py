"""LitGPT as a contender: the `main` of its `finetune_lora` and `finetune_full` scripts, held once a step.

Those take a Lightning Fabric, with it a logger, and a data module: this module hands over both, and changes nothing. It
runs in the peers' interpreter and imports nothing of Luthier. `python -m bench.field.litgpt_run CASE`, a JSON file; its
`style` is one of:

    litgpt-shipped   the scripts' defaults: one row at a time, gradients accumulated over the rows of a step, bf16 mixed
    litgpt-tuned     what its documentation advises for speed: all rows of a step at a time, bf16 throughout

It has no tied head outside of pretraining: where a shape has one, the head is a second copy.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from bench.field.gate import Gate, versions
from bench.field.line import Line

_NEVER = 1_000_000_000  # steps between validations
_LORA = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_query": True, "lora_key": True, "lora_value": True,
         "lora_projection": True, "lora_mlp": True, "lora_head": False}  # fmt: skip
Item = dict[str, Any]


class Rows:
    """The data module: Luthier's ids, put together by the library's own collate function."""

    prompt_style = None

    def __init__(self, ids: Path, collate: Callable[[Sequence[Item]], Item], gate: Gate) -> None:
        with open(ids, encoding="utf-8") as handle:
            self._items = [item(json.loads(line)) for line in handle]
        self._collate = collate
        self._gate = gate
        self._size = 1

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        """Rows are ids already; what matters is how many make a batch."""
        self._size = batch_size

    def prepare_data(self) -> None:
        """Nothing to fetch."""

    def setup(self) -> None:
        """Nothing to split."""

    def train_dataloader(self) -> DataLoader[Item]:
        items: Any = self._items
        return DataLoader(items, self._size, shuffle=True, collate_fn=self._counted)

    def val_dataloader(self) -> DataLoader[Item]:
        """The script validates before it trains; one row keeps that from being the peak of memory."""
        items: Any = self._items[:1]
        return DataLoader(items, 1, collate_fn=self._collate)

    def _counted(self, items: Sequence[Item]) -> Item:
        for each in items:
            self._gate.count(len(each["input_ids"]), int((each["labels"] != -100).sum()))
        return self._collate(items)


def item(row: Mapping[str, list[int]]) -> Item:
    """A row as the library's collate function takes it."""
    count = len(row["input_ids"])
    return {"input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(row["labels"]),
            "token_counts": {"raw": count, "raw_plus_prompt_template": count}}  # fmt: skip


class Logger:
    """Fabric's logger: told the loss after each forward and backward pass; a step ends where `step` grows."""

    name, version = "bench", 0

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._step = 0

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if "loss" in metrics and metrics["step"] > self._step:
            self._step = metrics["step"]
            self._gate.hold(float(metrics["loss"]))


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """LitGPT's description of a shape's config.json. ValueError for a family that this bench has no words for."""
    kind = config["model_type"]
    if kind not in ("llama", "qwen2"):
        raise ValueError(f"LitGPT does not take a model of type {kind} here")
    rope = config.get("rope_parameters") or config
    return {
        "name": "bench", "hf_config": {"org": "bench", "name": "bench"},
        "block_size": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"], "padded_vocab_size": config["vocab_size"],
        "n_layer": config["num_hidden_layers"], "n_head": config["num_attention_heads"],
        "n_query_groups": config["num_key_value_heads"], "n_embd": config["hidden_size"],
        "intermediate_size": config["intermediate_size"], "norm_class_name": "RMSNorm",
        "norm_eps": config["rms_norm_eps"], "mlp_class_name": "LLaMAMLP", "rotary_percentage": 1.0,
        "rope_base": int(rope["rope_theta"]), "parallel_residual": False, "bias": False, "attn_bias": kind == "qwen2",
    }  # fmt: skip


def convert(model: Path, folder: Path, description: dict[str, Any]) -> Path:
    """A checkpoint of LitGPT with the shape's own weights, by the library's converter; made once."""
    if (folder / "lit_model.pth").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(model / name, folder)
    converter = importlib.import_module("litgpt.scripts.convert_hf_checkpoint")
    config = importlib.import_module("litgpt").Config(**description)
    importlib.import_module("litgpt.utils").save_config(config, folder)
    copy = converter.copy_weights_qwen_2_5 if description["attn_bias"] else converter.copy_weights_hf_llama
    weights: dict[str, torch.Tensor] = {}
    halves: dict[int, Any] = {}  # queries, keys and values of a layer whose files part them
    for path in sorted(model.glob("*.safetensors")):
        copy(config, halves, weights, load_file(path))
    torch.save(weights, folder / "lit_model.part")
    (folder / "lit_model.part").rename(folder / "lit_model.pth")
    return folder


def train(case: dict[str, Any], gate: Gate) -> None:
    """The script's own main, which does not come back while the coordinator waits."""
    lora, tuned = case["method"] == "lora", case["style"] == "litgpt-tuned"
    litgpt = {name: importlib.import_module(f"litgpt.{name}") for name in ("args", "data.base", "utils")}
    config = json.loads((Path(case["model"]) / "config.json").read_text("utf-8"))
    description = described(config)
    folder = convert(Path(case["model"]), Path(case["work"]) / f"litgpt-{Path(case['model']).name}", description)
    collate = litgpt["data.base"].get_sft_collate_fn(pad_id=config["pad_token_id"])
    precision = "bf16-true" if tuned else litgpt["utils"].get_default_supported_precision(training=True)
    fabric = importlib.import_module("lightning").Fabric(devices=1, precision=precision, loggers=Logger(gate))
    settings = litgpt["args"].TrainArgs(
        save_interval=None, log_interval=1, global_batch_size=case["rows"], epochs=1000,
        micro_batch_size=case["rows"] if tuned else 1,
    )  # fmt: skip
    named = {
        "devices": 1, "seed": 1337, "data": Rows(Path(case["ids"]), collate, gate), "checkpoint_dir": folder,
        "out_dir": Path(case["work"]) / case["style"], "train": settings, "optimizer": "AdamW",
        "eval": litgpt["args"].EvalArgs(interval=_NEVER, max_new_tokens=1, max_iters=1),
    }  # fmt: skip
    script = importlib.import_module("litgpt.finetune.lora" if lora else "litgpt.finetune.full")
    named |= {"config": script.Config(**description, **(_LORA if lora else {}))} | ({} if lora else {"resume": False})
    fabric.launch(script.main, **named)


def main() -> None:
    """Run until the coordinator is done."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    line = Line()
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    train(case, Gate(line, lambda: versions(("torch", "litgpt", "lightning"))))


if __name__ == "__main__":
    main()
