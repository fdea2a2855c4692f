"""torchtune's single-device recipes as a contender: the recipe's own `setup` and `train`, held once a step.

A recipe is a script with a config file that names its parts: dataset, metric logger, checkpointer. This module hands
over such parts and changes no other. It runs in the peers' interpreter and imports nothing of Luthier.
`python -m bench.field.torchtune_run CASE`, a JSON file; its `style` is one of:

    torchtune-shipped   the config file that the library has for such a model: padded rows, bf16 throughout
    torchtune-tuned     what the comments in that file and its documentation advise for speed: packing, no activation
                        checkpointing, no optimizer step in the backward pass, and with a GPU compilation
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.field.gate import Gate, versions
from bench.field.line import Line

_HERE = "bench.field.torchtune_run"  # where the recipe finds the parts below
_FULL_OPTIMIZER = {"_component_": "torch.optim.AdamW", "fused": True, "lr": 2e-5}


@cache
def gate() -> Gate:
    """The gate of this process: the recipe makes the parts that share it."""
    return Gate(Line(), lambda: versions(("torch", "torchtune", "torchao")))


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the recipe asks of a tokenizer where rows are token ids already."""

    pad_id: int
    max_seq_len: int


class Counted(torch.utils.data.Dataset[Mapping[str, Any]]):
    """A dataset that tells the gate what is taken from it."""

    def __init__(self, rows: Any, pad_id: int) -> None:
        self._rows = rows
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._rows[number]
        tokens, labels = torch.as_tensor(found["tokens"]), torch.as_tensor(found["labels"])
        gate().count(int((tokens != self._pad_id).sum()), int((labels != -100).sum()))
        return found


def dataset(tokenizer: Tokens, ids: str, packed: bool) -> Counted:
    """The part of the config that is its dataset: Luthier's ids, packed by the library where that is asked."""
    rows: Any = [{"tokens": row["input_ids"], "labels": row["labels"]} for row in read(Path(ids))]
    if packed:
        pack = importlib.import_module("torchtune.datasets").PackedDataset
        rows = pack(rows, max_seq_len=tokenizer.max_seq_len, padding_idx=tokenizer.pad_id)
    return Counted(rows, tokenizer.pad_id)


def read(ids: Path) -> list[dict[str, list[int]]]:
    """The rows as the bench wrote them."""
    with open(ids, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


class Logger:
    """The part of the config that is its metric logger: it is called at the end of each step."""

    def log_config(self, config: Any) -> None:
        """Nothing is kept."""

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        gate().hold(float(payload["loss"]))


def checkpointer(**settings: Any) -> Any:
    """The library's own for Hugging Face's files, except that nothing is saved where the rows come to their end."""
    family: Any = importlib.import_module("torchtune.training").FullModelHFCheckpointer

    class Reader(family):  # type: ignore[misc]
        def save_checkpoint(self, *others: Any, **named: Any) -> None:
            """Not a part of any step."""

    return Reader(**settings)


def model(config: Mapping[str, Any], lora: bool) -> dict[str, Any]:
    """The config's model for a shape's config.json. ValueError for a family that torchtune's recipes do not have."""
    family = {"llama": "llama3_2", "qwen2": "qwen2"}.get(config["model_type"])
    if family is None:
        raise ValueError(f"torchtune has no recipe for a model of type {config['model_type']}")
    rope = config.get("rope_parameters") or config
    found = {
        "_component_": f"torchtune.models.{family}.{'lora_' if lora else ''}{family}",
        "vocab_size": config["vocab_size"], "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"], "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"], "intermediate_dim": config["intermediate_size"],
        "max_seq_len": config["max_position_embeddings"], "norm_eps": config["rms_norm_eps"],
        "rope_base": int(rope["rope_theta"]), "tie_word_embeddings": config["tie_word_embeddings"],
    }  # fmt: skip
    if family == "llama3_2":
        found["scale_factor"] = 1  # its rotary embedding then is the plain one
    if lora:
        found |= {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True,
                  "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0}  # fmt: skip
    return found


def changes(case: Mapping[str, Any], config: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """What differs from the library's config file: the model, the rows, one device, and in `tuned` what is advised.

    `longest`: tokens of the longest row, which a pack must hold.
    """
    tuned, lora = case["style"] == "torchtune-tuned", case["method"] == "lora"
    length = max(longest, min(1024, case["tokens"]))
    out = str(Path(case["work"]) / case["style"])
    found: dict[str, Any] = {
        "output_dir": out, "model": model(config, lora), "epochs": 1000, "gradient_accumulation_steps": 1,
        "device": "cuda" if torch.cuda.is_available() else "cpu", "batch_size": case["rows"],
        "tokenizer": {"_component_": f"{_HERE}.Tokens", "pad_id": config["pad_token_id"], "max_seq_len": length},
        "dataset": {"_component_": f"{_HERE}.dataset", "ids": case["ids"], "packed": tuned},
        "metric_logger": {"_component_": f"{_HERE}.Logger"},
        "checkpointer": {
            "_component_": f"{_HERE}.checkpointer", "checkpoint_dir": case["model"], "output_dir": out,
            "checkpoint_files": sorted(path.name for path in Path(case["model"]).glob("*.safetensors")),
            "model_type": "QWEN2" if config["model_type"] == "qwen2" else "LLAMA3_2",
        },
    }  # fmt: skip
    if not lora:
        found["optimizer"] = _FULL_OPTIMIZER  # the file's is one of bitsandbytes, which pages memory of a GPU
    if tuned:
        found |= {"batch_size": max(1, case["tokens"] // length), "compile": torch.cuda.is_available(),
                  "enable_activation_checkpointing": False, "enable_activation_offloading": False}  # fmt: skip
        found |= {} if lora else {"optimizer_in_bwd": False}
    return found


def main() -> None:
    """Run until the coordinator is done."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    gate()  # before anything prints
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    config = json.loads((Path(case["model"]) / "config.json").read_text("utf-8"))
    method = "lora" if case["method"] == "lora" else "full"
    kind = {"qwen2": "qwen2/0.5B"}.get(config["model_type"], "llama3_2/1B")
    recipes = Path(str(importlib.import_module("torchtune").__file__)).parents[1] / "recipes"
    conf = importlib.import_module("omegaconf").OmegaConf
    settings = conf.load(recipes / "configs" / f"{kind}_{method}_single_device.yaml")
    longest = max(len(row["input_ids"]) for row in read(Path(case["ids"])))
    for name, value in changes(case, config, longest).items():
        settings[name] = value  # a part is replaced as a whole
    # The scripts are no package: `tune run` runs their files, too.
    script = runpy.run_path(str(recipes / f"{method}_finetune_single_device.py"), run_name="recipe")
    recipe = script[f"{'LoRA' if method == 'lora' else 'Full'}FinetuneRecipeSingleDevice"](settings)
    recipe.setup(cfg=settings)
    recipe.train()


if __name__ == "__main__":
    # The recipe imports the parts above by this module's name; they must share one gate.
    importlib.import_module(_HERE).main()
