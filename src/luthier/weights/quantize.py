"""Quantization: base weights kept in 8 or 4 bits under an adapter, through bitsandbytes.

    bits=8   LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): a scale per output, and where the library multiplies
             in int8 (everywhere on GPUs, when scoring on CPUs) the activations are rounded as well
    bits=4   QLoRA (Dettmers et al. 2023, arXiv:2305.14314): NF4 or FP4 numbers, a scale per 64 weights

Linear layers alone are quantized; embeddings, norms, the output head and the fused experts of a mixture keep their
type. Everything that Luthier must know of bitsandbytes is here; of adapters this module knows nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from luthier.errors import SettingError

LIBRARY = "bitsandbytes"
OWN_LINEAR = ("FalconLinear",)  # classes of transformers that compute what nn.Linear computes
# What it logs of things that are as they should be here: the logger, and how the message starts.
EXPECTED = {
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How base weights are kept: in 8 bits, or in 4 as `quant_type` (nf4, fp4) with scales in fp32 or 8 bits."""

    bits: int
    quant_type: str = "nf4"
    double_quant: bool = True

    def __str__(self) -> str:
        if self.bits == 8:
            return "8 bits (int8)"
        return f"4 bits ({self.quant_type}{', double quantization' if self.double_quant else ''})"

    @classmethod
    def from_record(cls, stored: Mapping[str, Any] | None) -> Quantization | None:
        """Of the `quantization` block of a run's provenance; None where there is none."""
        return cls(stored["bits"], stored["quant_type"], stored["double_quant"]) if stored else None

    def to_record(self) -> dict[str, Any]:
        """The block, with the library that does it; SettingError when that is not installed."""
        try:
            version = metadata.version(LIBRARY)
        except metadata.PackageNotFoundError:
            asked, instead = ("bits=4", "bits=16") if self.bits == 4 else (
                "int8_quantization=True", "int8_quantization=False and bits=16"
            )  # fmt: skip
            raise SettingError(
                f"{asked}: needs {LIBRARY}, which is not installed; pip install 'luthier[quant]', or set {instead}"
            ) from None
        return {**asdict(self), "library": LIBRARY, "library_version": version}

    def loading(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What `from_pretrained` is given to load weights so. SettingError when the library is not installed.

        4-bit numbers are stored as bf16 elements, the type that FSDP2 can shard.
        """
        self.to_record()
        config = BitsAndBytesConfig(
            load_in_8bit=self.bits == 8, load_in_4bit=self.bits == 4, bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant, bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.bfloat16,
        )  # fmt: skip
        return {"quantization_config": config, "device_map": {"": device}}


@contextmanager
def plain_linear_layers(family: type[PreTrainedModel]) -> Iterator[None]:
    """For the duration, build models of `family` of nn.Linear where they have a class of their own that does the same.

    transformers 5.23 quantizes nn.Linear and no class derived from it, and would load Falcon in full without a word.
    """
    module = vars(importlib.import_module(family.__module__))
    before = {name: module[name] for name in OWN_LINEAR if name in module}
    module.update(dict.fromkeys(before, nn.Linear))
    try:
        yield
    finally:
        module.update(before)


def is_quantized(network: nn.Module) -> bool:
    """Whether any weight of the network is kept in 8 or 4 bits."""
    return any(True for _ in _quantized_layers(network))


def keep_weights(network: nn.Module) -> None:
    """Keep quantized weights as they were loaded, whatever is done with them on a CPU.

    4 bits: with AVX512-BF16, bitsandbytes would lay them out anew at the first forward without gradients, for a product
    that has none: after the base was scored, no adapter below the last layer would train. 8 bits: PEFT's DoRA moves the
    weights to the device they are on, and bitsandbytes takes what was moved for new weights, which have no scales.
    """
    for layer in _quantized_layers(network):
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        else:
            layer.register_forward_pre_hook(_keep_scales)


def _keep_scales(layer: Any, arguments: Any) -> None:
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.CB = None  # so that the layer goes on with the weights and scales that it has


def quantization_scale_bytes(network: nn.Module) -> int:
    """Bytes of the scales that lie beside the quantized weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _statistics(network))


def count_weights(network: nn.Module) -> int:
    """Weights of the network: of a quantized layer those it stands for, not the numbers that hold them."""
    layers = {id(layer.weight): layer for layer in _quantized_layers(network)}
    return sum(
        layers[id(parameter)].in_features * layers[id(parameter)].out_features
        if id(parameter) in layers else parameter.numel()
        for parameter in network.parameters()
    )  # fmt: skip


def describe_quantization(network: PreTrainedModel) -> str:
    """How much of the network is quantized, and which layers are not that might be expected to be, in words."""
    quantized = sum(layer.in_features * layer.out_features for layer in _quantized_layers(network))
    words = f"{quantized / count_weights(network):.0%} of its weights quantized"
    others = left_out(network)
    return words + (f", not {' and '.join(others)}" if others else "")


def left_out(network: PreTrainedModel) -> dict[str, int]:
    """Layers that might be expected to be quantized and are not, by the last two parts of their names: their weights.

    They are what bitsandbytes has no layer for (fused experts) or what the architecture needs in full (T5's wo).
    """
    head, found = network.get_output_embeddings(), dict[str, int]()
    quantized = {id(layer) for layer in _quantized_layers(network)}
    for name, module in network.named_modules():
        if module is head or id(module) in quantized:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 or (isinstance(module, nn.Linear) and own == "weight"):
                parts = [*name.split("."), *([own] if parameter.ndim == 3 else [])]
                key = ".".join(parts[-2:])
                found[key] = found.get(key, 0) + parameter.numel()
    return found


def _quantized_layers(network: nn.Module) -> Iterator[Any]:
    # By where they come from, for the library may be absent; PEFT's layers round them have the same names.
    for module in network.modules():
        if isinstance(module, nn.Linear) and type(module).__module__.startswith(LIBRARY):
            yield module


def _statistics(network: nn.Module) -> Iterator[Tensor]:
    for layer in _quantized_layers(network):
        if hasattr(layer, "quant_state"):
            yield layer.quant_state.absmax
            if layer.quant_state.nested:
                yield layer.quant_state.state2.absmax
        else:
            yield layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB


class _Unless(logging.Filter):
    """Lets every record pass but those whose message starts so."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.start)


def _import_quietly() -> None:
    """Import the library, where it is installed, before peft does, without its log lines and its downloads.

    On CPUs with AVX512-BF16 it asks the package `kernels`, if that is there, to fetch compiled code from the Hub and
    runs it; Luthier runs no code that was not installed, and does not use that product (see `keep_weights`).
    """
    for name, start in EXPECTED.items():
        logging.getLogger(name).addFilter(_Unless(start))
    if LIBRARY in sys.modules or importlib.util.find_spec(LIBRARY) is None:
        return
    modules: dict[str, Any] = sys.modules
    before = {"kernels": modules["kernels"]} if "kernels" in modules else {}
    modules["kernels"] = None  # an import of it fails
    try:
        importlib.import_module(LIBRARY)
    finally:
        del modules["kernels"]
        modules.update(before)


_import_quietly()
