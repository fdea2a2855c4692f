"""Loading a base model's weights: safetensors only, from a local folder, on the device asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from luthier.errors import ModelNotFoundError, SettingError, UserError
from luthier.weights.model import Model

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")


def find_device(name: str) -> torch.device:
    """The device of a --device argument; auto takes CUDA, then Apple's MPS, then the CPU. SettingError if absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 0):
        raise SettingError(f"--device {name}: this machine has no such device; `luthier doctor` lists what it has")
    return device


def compute_dtype(bf16: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: bf16 True or False as asked; auto is bf16 on GPUs that have it, fp32 elsewhere."""
    if bf16 == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if bf16 == "True" else torch.float32


def load_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    frozen: bool = False,
    from_scratch: bool = False,
    seed: int = 0,
) -> Model:
    """Load the weights in `folder`.

    `frozen` weights (the base under an adapter, or a model that only scores) are kept in `dtype`; weights that train
    are kept in fp32, whatever the compute type. `from_scratch` draws new weights from `seed` instead.

    Raises ModelNotFoundError when there are no safetensors weights, UserError when they cannot be read, do not fit
    config.json, or lack a parameter of it.
    """
    transformers_logging.disable_progress_bar()
    kept = dtype if frozen else torch.float32
    network = _fresh(folder, kept, seed) if from_scratch else _stored(folder, kept)
    network.config.use_cache = False
    network.requires_grad_(not frozen)
    nn.Module.to(network, device)
    network.eval()
    return Model(network, dtype, device)


def _stored(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    if not any((folder / name).is_file() for name in SAFETENSORS):
        raise ModelNotFoundError(
            f"{folder}: no model.safetensors; only safetensors weights are read, convert others with transformers' "
            "save_pretrained first"
        )
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, attn_implementation="sdpa",
            output_loading_info=True,
        )  # fmt: skip
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(folder, error) from error
    network: PreTrainedModel = found[0]
    missing = sorted(found[1]["missing_keys"])
    if missing:  # transformers would go on with random values there
        raise UserError(
            f"{folder}: the stored weights lack {len(missing)} parameters that config.json asks for (first: "
            f"{missing[0]}); copy the whole model again"
        )
    return network


def _fresh(folder: Path, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="sdpa"
            )
    except (ValueError, OSError, KeyError) as error:
        raise _unloadable(folder, error) from error
    return network


def _unloadable(folder: Path, error: Exception) -> UserError:
    reason = "the weights do not fit config.json" if "mismatched_sizes" in str(error) else _first_line(error)
    return UserError(f"{folder}: not a causal language model that transformers can load: {reason}")


def weights_bytes(folder: Path) -> int:
    """Bytes of the stored weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
