"""Converts a GGUF file to a model in Hugging Face layout, once: weights dequantized to float32, tokenizer rebuilt.

float32 holds every value that a quantized file describes exactly.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GgufConfig,
    PreTrainedModel,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from luthier.catalog.gguf_header import GgufHeader, read_header
from luthier.errors import CapacityError, ModelNotFoundError
from luthier.gguf.config import count_prediction_layers, read_gguf_config
from luthier.gguf.tokenizer import write_tokenizer
from luthier.home import cache_root
from luthier.jobfolder import write_json
from luthier.weights.config_forms import complete_config
from luthier.weights.converted_folder import check_disk_space, convert_into, format_size, is_converted

# Its progress bar takes no notice of transformers' setting, and would fill the logs of jobs.
vars(modeling_gguf_pytorch_utils)["tqdm"] = functools.partial(tqdm, disable=True)
_BYTES = 4  # of a float32
_TIED_TWICE = ("bloom",)  # llama.cpp's converter stores its output weights a second time


def convert_gguf(file: Path, notify: Callable[[str], None]) -> Path:
    """The cached conversion of a GGUF file.

    ModelNotFoundError for a file that is no language model or that cannot be read whole; CapacityError, before any
    weight is read, when memory or the cache's disk is too small for the dequantized weights.
    """
    header = read_header(file)
    target = cache_root() / f"converted-{_file_hash(file)}"
    if is_converted(target):
        notify(f"using the weights dequantized from {file.name} before: {target}")
        return target
    size = header.parameters * _BYTES
    check_disk_space(target.parent, size)
    _check_memory(header, size)
    notify(
        f"dequantizing {file.name} ({header.architecture}, {header.quantization}, "
        f"{format_size(file.stat().st_size)}) to {format_size(size)} of float32 safetensors, once: {target}"
    )
    if left_out := count_prediction_layers(header):
        notify(
            f"{file.name}: {left_out} layers for multi-token prediction are left out; transformers does not use them"
        )
    convert_into(target, file.parent, lambda temporary: _convert(header, temporary))
    return target


def _convert(header: GgufHeader, folder: Path) -> dict[str, Any]:
    write_tokenizer(header, folder)  # first: it fails early where it fails
    network = _load(header)
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    # An adapter's base is read by other programs, too, and some know only the older forms.
    write_json(folder / "config.json", complete_config(config, {}))
    name = header.metadata.get("general.name")
    facts = {"architecture": header.architecture, "quantization": header.quantization, "name": name}
    return {"files": {header.file.name: _file_hash(header.file)}, "gguf": facts}


def _load(header: GgufHeader) -> PreTrainedModel:
    config: Any = read_gguf_config(header)
    family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    transformers_logging.disable_progress_bar()
    try:
        loaded = family.from_pretrained(
            header.file.parent, gguf_file=header.file.name, config=config, dtype=torch.float32, local_files_only=True,
            quantization_config=GgufConfig(dequantize=True), output_loading_info=True,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError, OSError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFoundError(f"{header.file}: transformers cannot read its weights: {reason}") from None
    network: Any = loaded[0]
    _check_complete(header, network, sorted(loaded[1]["missing_keys"]))
    network.hf_quantizer = None  # the weights are plain now; with it, transformers refuses to save them
    network.config.__dict__.pop("quantization_config", None)
    model: PreTrainedModel = network
    return model


def _check_complete(header: GgufHeader, network: PreTrainedModel, missing: list[str]) -> None:
    """ModelNotFoundError unless the file's weights and the model's are the same number of values."""
    if missing:
        raise ModelNotFoundError(
            f"{header.file}: it lacks {len(missing)} parameters of {type(network).__name__} (first: {missing[0]}); "
            "take the model's safetensors instead"
        )
    held = header.parameters
    if left_out := count_prediction_layers(header):
        first = int(header.key("block_count")) - left_out
        names = tuple(f"blk.{number}." for number in range(first, first + left_out))
        held -= sum(prod(tensor.shape) for tensor in header.tensors if tensor.name.startswith(names))
    if header.architecture in _TIED_TWICE:
        held -= sum(prod(tensor.shape) for tensor in header.tensors if tensor.name == "output.weight")
    built = sum(parameter.numel() for parameter in network.parameters())
    if held != built:
        raise ModelNotFoundError(
            f"{header.file}: it holds {held:,} weights, and {type(network).__name__} as transformers reads it has "
            f"{built:,}; some would be lost, take the model's safetensors instead"
        )


def _check_memory(header: GgufHeader, size: int) -> None:
    largest = max(prod(tensor.shape) for tensor in header.tensors)  # held twice more while it is dequantized
    needed, free = size + 2 * _BYTES * largest, psutil.virtual_memory().available
    if needed > free:
        raise CapacityError(
            f"{header.file}: dequantizing its {header.parameters / 1e9:.1f} billion weights needs "
            f"{format_size(needed)} of memory and {format_size(free)} are free; free some, or take the model's "
            "safetensors"
        )


@functools.lru_cache(maxsize=4)
def _file_hash(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
