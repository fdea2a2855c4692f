"""Quantization of the base weights under an adapter to 8 or 4 bits, through bitsandbytes.

    bits=8   LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): one scale per output; activations are rounded too
             where the library multiplies in int8 (always on GPUs, during scoring on CPUs)
    bits=4   QLoRA (Dettmers et al. 2023, arXiv:2305.14314): NF4 or FP4 numbers, one scale per 64 weights

Only linear layers are quantized; embeddings, norms, the output head and the fused experts of a mixture keep their type.
All code that depends on bitsandbytes is here.
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
LINEAR_SUBCLASSES = ("FalconLinear",)  # subclasses of nn.Linear in transformers that compute the same
# Log messages of bitsandbytes about expected conditions: the logger, and the start of the message.
EXPECTED = {
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """8 bits, or 4 bits as `quant_type` (nf4, fp4); `double_quant` stores the 4-bit scales in 8 bits, not fp32."""

    bits: int
    quant_type: str = "nf4"
    double_quant: bool = True

    def __str__(self) -> str:
        if self.bits == 8:
            return "8 bits (int8)"
        return f"4 bits ({self.quant_type}{', double quantization' if self.double_quant else ''})"

    @classmethod
    def from_record(cls, stored: Mapping[str, Any] | None) -> Quantization | None:
        """From the `quantization` block of a run's provenance; None without one."""
        return cls(stored["bits"], stored["quant_type"], stored["double_quant"]) if stored else None

    def to_record(self) -> dict[str, Any]:
        """The `quantization` block, with the library's version; SettingError when it is not installed."""
        try:
            version = metadata.version(LIBRARY)
        except metadata.PackageNotFoundError:
            setting, fallback = ("bits=4", "bits=16") if self.bits == 4 else (
                "int8_quantization=True", "int8_quantization=False and bits=16"
            )  # fmt: skip
            raise SettingError(
                f"{setting}: needs {LIBRARY}, which is not installed; pip install 'luthier[quant]', or set {fallback}"
            ) from None
        return {**asdict(self), "library": LIBRARY, "library_version": version}

    def load_arguments(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of `from_pretrained` for quantized weights. SettingError when the library is not installed.

        4-bit numbers are stored in bf16 elements, which FSDP2 can shard.
        """
        self.to_record()
        config = BitsAndBytesConfig(
            load_in_8bit=self.bits == 8, load_in_4bit=self.bits == 4, bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant, bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.bfloat16,
        )  # fmt: skip
        return {"quantization_config": config, "device_map": {"": device}}


@contextmanager
def standard_linear_layers(family: type[PreTrainedModel]) -> Iterator[None]:
    """Build models of `family` with nn.Linear in place of the family's own equivalent class.

    transformers 5.23 quantizes nn.Linear but no subclass, and would silently load Falcon unquantized.
    """
    module = vars(importlib.import_module(family.__module__))
    before = {name: module[name] for name in LINEAR_SUBCLASSES if name in module}
    module.update(dict.fromkeys(before, nn.Linear))
    try:
        yield
    finally:
        module.update(before)


def is_quantized(network: nn.Module) -> bool:
    """Whether any weight of the network is stored in 8 or 4 bits."""
    return any(True for _ in _quantized_layers(network))


def keep_weights(network: nn.Module) -> None:
    """Keep bitsandbytes from changing quantized weights after loading, on CPUs.

    4 bits: with AVX512-BF16 it would repack them at the first forward pass without gradients, for a kernel that has no
    backward pass: after scoring, only the last layer's adapter would train. 8 bits: PEFT's DoRA moves the weights to
    the device they are on, and bitsandbytes would treat the moved weights as new ones, which have no scales.
    """
    for layer in _quantized_layers(network):
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        else:
            layer.register_forward_pre_hook(_keep_scales)


def _keep_scales(layer: Any, arguments: Any) -> None:
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.CB = None  # the layer then keeps its weights and scales


def quantization_scale_bytes(network: nn.Module) -> int:
    """Bytes of the quantized weights' scales."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _scales(network))


def count_weights(network: nn.Module) -> int:
    """Number of weights of the network, before any packing of quantized layers."""
    layers = {id(layer.weight): layer for layer in _quantized_layers(network)}
    return sum(
        layers[id(parameter)].in_features * layers[id(parameter)].out_features
        if id(parameter) in layers else parameter.numel()
        for parameter in network.parameters()
    )  # fmt: skip


def describe_quantization(network: PreTrainedModel) -> str:
    """The quantized share of the network, and the layers left out, as text for users."""
    quantized = sum(layer.in_features * layer.out_features for layer in _quantized_layers(network))
    text = f"{quantized / count_weights(network):.0%} of its weights quantized"
    names = unquantized_layers(network)
    return text + (f", not {' and '.join(names)}" if names else "")


def unquantized_layers(network: PreTrainedModel) -> dict[str, int]:
    """Number of weights of the matrices that are not quantized, by the last two parts of their names.

    bitsandbytes has no layer for them (fused experts), or the architecture needs full precision (T5's wo).
    """
    head, counts = network.get_output_embeddings(), dict[str, int]()
    quantized = {id(layer) for layer in _quantized_layers(network)}
    for name, module in network.named_modules():
        if module is head or id(module) in quantized:
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 or (isinstance(module, nn.Linear) and attribute == "weight"):
                parts = [*name.split("."), *([attribute] if parameter.ndim == 3 else [])]
                key = ".".join(parts[-2:])
                counts[key] = counts.get(key, 0) + parameter.numel()
    return counts


def _quantized_layers(network: nn.Module) -> Iterator[Any]:
    # By module, because the library may be absent, and PEFT's wrappers have the same class names.
    for module in network.modules():
        if isinstance(module, nn.Linear) and type(module).__module__.startswith(LIBRARY):
            yield module


def _scales(network: nn.Module) -> Iterator[Tensor]:
    for layer in _quantized_layers(network):
        if hasattr(layer, "quant_state"):
            yield layer.quant_state.absmax
            if layer.quant_state.nested:
                yield layer.quant_state.state2.absmax
        else:
            yield layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB


class _PrefixFilter(logging.Filter):
    """Drops log records whose message starts with `prefix`."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.prefix)


def _import_quietly() -> None:
    """Import the library, if installed, before peft does, without its expected log messages and its downloads.

    On CPUs with AVX512-BF16 it uses the package `kernels`, if installed, to download compiled code from the Hub and run
    it. Luthier runs only installed code, and does not use that kernel (see `keep_weights`).
    """
    for name, prefix in EXPECTED.items():
        logging.getLogger(name).addFilter(_PrefixFilter(prefix))
    if LIBRARY in sys.modules or importlib.util.find_spec(LIBRARY) is None:
        return
    modules: dict[str, Any] = sys.modules
    before = {"kernels": modules["kernels"]} if "kernels" in modules else {}
    modules["kernels"] = None  # makes an import of it fail
    try:
        importlib.import_module(LIBRARY)
    finally:
        del modules["kernels"]
        modules.update(before)


_import_quietly()
