"""Load a base model's weights: safetensors only, from a local folder, onto a device."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from luthier.errors import ModelNotFoundError, SettingError, UserError
from luthier.weights.model import Model
from luthier.weights.quantize import Quantization, is_quantized, keep_weights, standard_linear_layers

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


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: bf16, fp16 or fp32; auto is bf16 on GPUs that support it, fp32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def load_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    frozen: bool = False,
    from_scratch: bool = False,
    seed: int = 0,
    quantization: Quantization | None = None,
    trained_in: torch.dtype = torch.float32,
) -> Model:
    """Load the weights in `folder`.

    `frozen` weights (the base of an adapter, or a model for inference) are stored in `dtype`, their linear layers
    quantized if `quantization` is given; trainable weights are stored in `trained_in`, whatever the compute type.
    `from_scratch` initializes new weights from `seed` instead.

    Raises ModelNotFoundError when there are no safetensors weights, UserError when they cannot be read, do not fit
    config.json, lack a parameter, are stored quantized, or are an encoder's, and SettingError when they cannot be
    quantized.
    """
    assert frozen or quantization is None, "quantized weights do not train"
    transformers_logging.disable_progress_bar()
    storage_dtype = dtype if frozen else trained_in
    if from_scratch:
        network = _initialize(folder, storage_dtype, seed)
    else:
        network = _load_stored(
            folder, storage_dtype, quantization.load_arguments(device, dtype) if quantization else {}
        )
    network.config.use_cache = False
    network.requires_grad_(not frozen)
    if quantization is None:
        nn.Module.to(network, device)
    elif is_quantized(network):  # already on the device; moving them would lose their scales
        keep_weights(network)
    else:
        raise SettingError(f"bits={quantization.bits}: {type(network).__name__} has no linear layer; set bits=16")
    model = Model(network.eval(), dtype, device)
    try:
        is_encoder = model.attends_to_later_tokens()
    except (TypeError, ValueError) as error:  # a class that needs more than token ids
        raise UserError(f"{folder}: {type(network).__name__} does not run on tokens alone: {error}") from error
    if is_encoder:
        raise UserError(
            f"{folder}: {type(network).__name__} is an encoder: its tokens attend to later ones, so it cannot write "
            "text; choose a causal model or an encoder-decoder"
        )
    return model


def _load_stored(folder: Path, dtype: torch.dtype, quantization: dict[str, Any]) -> PreTrainedModel:
    if not any((folder / name).is_file() for name in SAFETENSORS):
        raise ModelNotFoundError(
            f"{folder}: no weights: expected model.safetensors, or pytorch_model.bin, which is converted to it once"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        _check_unquantized(folder, config)
        family = _auto_class(config)
        with standard_linear_layers(family._model_mapping[type(config)]) if quantization else nullcontext():
            loaded: Any = family.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True,
                output_loading_info=True, **quantization,
            )  # fmt: skip
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise _load_error(folder, error) from error
    network: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:  # transformers initializes them randomly
        raise UserError(
            f"{folder}: the stored weights lack {len(missing)} parameters that config.json asks for (first: "
            f"{missing[0]}); copy the whole model again"
        )
    return network


def absent_parameters(folder: Path) -> list[str]:
    """Parameters of config.json's model that the stored weights lack, found without reading the weights."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        loaded: Any = _auto_class(config).from_pretrained(
            folder, config=config, use_safetensors=True, local_files_only=True, device_map="meta",
            output_loading_info=True,
        )  # fmt: skip
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise _load_error(folder, error) from error
    return sorted(loaded[1]["missing_keys"])


def _initialize(folder: Path, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: PreTrainedModel = _auto_class(config).from_config(config, dtype=dtype)
    except (ValueError, OSError, KeyError) as error:
        raise _load_error(folder, error) from error
    return network


def _check_unquantized(folder: Path, config: PreTrainedConfig) -> None:
    stored = getattr(config, "quantization_config", None)
    if stored:
        method = stored.get("quant_method", "unknown") if isinstance(stored, dict) else stored.quant_method
        raise UserError(
            f"{folder}: its weights are stored quantized ({method}), which Luthier does not tune; take the model's "
            "unquantized weights, and bits=4 or bits=8 to quantize them when loading"
        )


def _auto_class(config: PreTrainedConfig) -> Any:
    """The auto class of transformers for a causal or an encoder-decoder language model."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _load_error(folder: Path, error: Exception) -> UserError:
    reason = "the weights do not fit config.json" if "mismatched_sizes" in str(error) else _first_line(error)
    return UserError(f"{folder}: not a language model that transformers can load: {reason}")


def weights_bytes(folder: Path) -> int:
    """Bytes of the stored weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
