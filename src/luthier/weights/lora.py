"""LoRA (Hu et al. 2021, arXiv:2106.09685) through PEFT: attach, load and merge an adapter.

    y = W x + scale * B A x      scale = alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)
    y = m * (W + scale * B A) x / |W + scale * B A|      a magnitude m per output (DoRA, Liu et al. 2024,
                                                         arXiv:2402.09353)

W is frozen and may be quantized; A, B and m are trained in fp32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import SettingError, UserError
from luthier.weights.model import Model
from luthier.weights.quantize import is_quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Configuration of a new adapter. `target_modules` and `target_parameters` are ends of names, as in LoraTargets.

    Target parameters take no dropout; `dropout` is that of the target modules.
    """

    r: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False


def attach_adapter(model: Model, adapter: Adapter, seed: int) -> Model:
    """Freeze the model and attach a new adapter with fp32 weights.

    SettingError for DoRA on target parameters, which PEFT does not support.
    """
    hf_model, has_parameters = model.hf_model, bool(adapter.target_parameters)
    if has_parameters and adapter.use_dora:
        names = ", ".join(adapter.target_parameters)
        raise SettingError(
            f"use_dora=True: not for weights that are not layers of their own ({names}); set use_dora=False, or leave "
            "them out of lora_target_modules"
        )
    config = LoraConfig(
        r=adapter.r, lora_alpha=adapter.alpha, lora_dropout=0.0 if has_parameters else adapter.dropout,
        use_rslora=adapter.use_rslora, use_dora=adapter.use_dora, target_modules=list(adapter.target_modules),
        target_parameters=list(adapter.target_parameters) or None,
        fan_in_fan_out=any(map(_is_transposed, hf_model.modules())),
        task_type="SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), _peft_warnings_silenced():
        torch.manual_seed(seed)
        network = get_peft_model(hf_model, config, autocast_adapter_dtype=False)
    if has_parameters and adapter.dropout:
        _set_dropout(network, adapter.dropout)
    _prepare_training(network, model.dtype, casts_inputs=bool(adapter.dropout) or adapter.use_dora)
    return Model(network.eval(), model.dtype, model.device)  # PEFT creates its modules in training mode


def continue_adapter(model: Model, folder: Path, dropout: float) -> Model:
    """Attach the adapter stored in `folder` to its base model, to be trained further with this dropout."""
    continued = load_adapter(model, folder, trainable=True)
    network: Any = continued.network
    config: LoraConfig = network.peft_config["default"]
    config.lora_dropout = 0.0 if config.target_parameters else dropout
    _set_dropout(network, dropout)
    _prepare_training(network, model.dtype, casts_inputs=bool(dropout) or bool(config.use_dora))
    return Model(network.eval(), model.dtype, model.device)


def merge_stored_adapter(model: Model, folder: Path) -> Model:
    """Merge the adapter stored in `folder` into its base model, whose weights keep what they are: frozen or trained."""
    is_trained = any(parameter.requires_grad for parameter in model.network.parameters())
    merged = merge_adapter(load_adapter(model, folder))
    merged.requires_grad_(is_trained)
    return Model(merged.eval(), model.dtype, model.device)


def _prepare_training(network: nn.Module, dtype: torch.dtype, *, casts_inputs: bool) -> None:
    """Store the adapter's weights in fp32; without `casts_inputs` its inputs stay in the compute type."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if dtype is not torch.float32 and not casts_inputs:
        _disable_input_casts(network)


def _disable_input_casts(network: nn.Module) -> None:
    """Skip the adapters' cast of each input to fp32, which autocast would undo exactly.

    Not with dropout, whose scale is computed in between: rounded to bf16 it would be off by 1 part in 500.
    """
    for module in network.modules():
        if isinstance(module, LoraLinear):
            module.cast_input_dtype_enabled = False


def _set_dropout(network: nn.Module, dropout: float) -> None:
    """Dropout for the adapters on modules only: PEFT refuses one setting for modules and parameters."""
    modules: Iterator[Any] = network.modules()
    for module in modules:
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()


def _is_transposed(module: nn.Module) -> bool:
    """Whether a layer's stored weight is (in, out), as GPT-2's, also if quantization has replaced the layer.

    The adapter's config must record this for merging into the stored base.
    """
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D


def load_adapter(model: Model, folder: Path, *, trainable: bool = False) -> Model:
    """Attach the adapter stored in `folder` (PEFT layout, safetensors) to a base model.

    UserError if the stored adapter lacks weights, which PEFT would only warn of.
    """
    with _peft_warnings_silenced(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
        try:
            network: Any = PeftModel.from_pretrained(
                model.hf_model, str(folder), is_trainable=trainable, autocast_adapter_dtype=False, use_safetensors=True
            )
        except UserWarning as warning:
            raise UserError(
                f"{folder}: the adapter lacks weights of layers that its adapter_config.json names "
                f"({str(warning).partition('[')[2].partition(',')[0].strip(chr(39))}); copy the whole adapter again"
            ) from None
    return Model(network.eval(), model.dtype, model.device)


@contextmanager
def _peft_warnings_silenced() -> Iterator[None]:
    """PEFT 0.21 reads a deprecated attribute of transformers 5.23; a test fails when it no longer does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def merge_adapter(model: Model) -> PreTrainedModel:
    """Merge the adapter into the base weights, which must not be quantized; `model` must not be used afterwards."""
    assert isinstance(model.network, PeftModel)
    assert not is_quantized(model.network)
    with warnings.catch_warnings():
        # transformers 5 marks every T5 as tied, so PEFT warns that T5 1.1, which has a separate head, is not.
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged: PreTrainedModel = model.network.merge_and_unload()
    return merged
