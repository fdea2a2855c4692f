"""An adapter whose strength does not depend on how a program reads its config: the scale multiplied into B.

PEFT computes x A B times alpha / r (or alpha / sqrt(r) with rank-stabilized LoRA). OpenVINO GenAI and llama.cpp's
converter leave that factor out, or know one of the two forms only.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors.torch import load_file, save_file

from luthier.errors import UserError
from luthier.jobfolder import write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def adapter_scale(folder: Path) -> float:
    """The factor by which PEFT multiplies the adapter's products."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    rank = int(config["r"])
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def multiply_scale_into_weights(folder: Path) -> None:
    """Rewrite the adapter in `folder` so that alpha = r and rsLoRA is off, with the same products in fp32.

    UserError for DoRA, and for ranks or alphas that differ between layers.
    """
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if config.get("use_dora"):
        raise UserError("the run used use_dora=True, whose magnitudes have no plain form; use --merged")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UserError(f"{folder / CONFIG}: ranks or alphas differ between layers; use --merged")
    scale, weights = adapter_scale(folder), load_file(folder / WEIGHTS)
    for name, value in weights.items():
        if ".lora_B" in name:
            weights[name] = value * scale
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config | {"lora_alpha": config["r"], "use_rslora": False})
