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
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import SettingError, did_you_mean
from luthier.weights.model import Model
from luthier.weights.quantize import is_quantized

EXPERTS = "experts"  # the target name of the fused expert matrices of a mixture of experts
_QUERY_AND_VALUE = ("q_proj", "v_proj")
_FUSED = ("query_key_value",)
# By config.json's model_type. A catalogue entry may override it; a family without an entry here gets all-linear.
DEFAULT_TARGET_MODULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi", "gptj",
                     "gpt_neo"), _QUERY_AND_VALUE),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon"), _FUSED),
    **dict.fromkeys(("t5", "mt5", "umt5"), ("q", "v")),
    "gpt2": ("c_attn",),
    "mpt": ("Wqkv",),
    "phi3": ("qkv_proj",),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Configuration of a new adapter. `target_modules`: last name parts of linear layers, or EXPERTS."""

    r: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    use_rslora: bool = False
    use_dora: bool = False


def attach_adapter(model: Model, adapter: Adapter, seed: int) -> Model:
    """Freeze the model and attach a new adapter with fp32 weights.

    SettingError for settings that adapters on the experts of a mixture do not support.
    """
    hf_model = model.hf_model
    experts = expert_matrices(hf_model) if EXPERTS in adapter.target_modules else ()
    if experts:
        _check_experts(adapter)
    config = LoraConfig(
        r=adapter.r, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora, target_modules=[name for name in adapter.target_modules if name != EXPERTS],
        target_parameters=list(experts) or None, fan_in_fan_out=any(map(_is_transposed, hf_model.modules())),
        task_type="SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), _peft_warnings_silenced():
        torch.manual_seed(seed)
        network = get_peft_model(hf_model, config, autocast_adapter_dtype=False)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if model.dtype is not torch.float32 and not adapter.dropout and not adapter.use_dora:
        _disable_input_casts(network)
    return Model(network.eval(), model.dtype, model.device)  # PEFT creates its modules in training mode


def _disable_input_casts(network: nn.Module) -> None:
    """Skip the adapters' cast of each input to fp32, which autocast would undo exactly.

    Not with dropout, whose scale is computed in between: rounded to bf16 it would be off by 1 part in 500.
    """
    for module in network.modules():
        if isinstance(module, LoraLinear):
            module.cast_input_dtype_enabled = False


def resolve_target_modules(setting: str, network: PreTrainedModel, family_default: tuple[str, ...]) -> tuple[str, ...]:
    """The linear layers that the `lora_target_modules` setting names.

    `setting` is default, all-linear, or comma-separated last parts of module names, or EXPERTS for a mixture of
    experts. SettingError for a name that no linear layer has, and for the output head, which is never adapted.
    all-linear excludes the fused experts of a mixture and its router, which are not linear layers.
    """
    linear = linear_layer_names(network)
    known = (*linear, EXPERTS) if expert_matrices(network) else linear
    if setting == "all-linear":
        return linear
    if setting == "default":
        targets = family_default or DEFAULT_TARGET_MODULES.get(network.config.model_type, ())
        return tuple(name for name in targets if name in known) or linear
    names = tuple(name.strip() for name in setting.split(",") if name.strip())
    if not names:
        raise SettingError(f"lora_target_modules={setting}: no layer is named; use default, all-linear, or names")
    for name in names:
        if name not in known:
            raise SettingError(
                f"lora_target_modules={name}: {type(network).__name__} has no such linear layer"
                f"{did_you_mean(name, known)}; it has {', '.join(known)}, or use all-linear"
            )
    return names


def expert_matrices(network: PreTrainedModel) -> tuple[str, ...]:
    """Last two name parts of a mixture's fused expert matrices (experts, out, in); empty for other models."""
    names = (name.split(".")[-2:] for name, parameter in network.named_parameters() if parameter.ndim == 3)
    return tuple(dict.fromkeys(".".join(parts) for parts in names if parts[0] == EXPERTS))


def _check_experts(adapter: Adapter) -> None:
    """SettingError for settings that PEFT does not support on matrices that are not layers."""
    if adapter.dropout:
        raise SettingError(
            f"lora_target_modules={EXPERTS}: an adapter on the experts takes no dropout, and lora_dropout is "
            f"{adapter.dropout:g}; set lora_dropout=0"
        )
    if adapter.use_dora:
        raise SettingError(
            f"use_dora=True: not for the experts of a mixture; leave {EXPERTS} out of lora_target_modules, or use_dora"
        )


def _is_transposed(module: nn.Module) -> bool:
    """Whether a layer's stored weight is (in, out), as GPT-2's, also if quantization has replaced the layer.

    The adapter's config must record this for merging into the stored base.
    """
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D


def linear_layer_names(network: PreTrainedModel) -> tuple[str, ...]:
    """Last name parts of all linear layers except the output head, in order of first appearance."""
    head = network.get_output_embeddings()
    names = (
        name.rpartition(".")[2]
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    return tuple(dict.fromkeys(names))


def load_adapter(model: Model, folder: Path, *, trainable: bool = False) -> Model:
    """Attach the adapter stored in `folder` (PEFT layout, safetensors) to a base model."""
    with _peft_warnings_silenced():
        network: Any = PeftModel.from_pretrained(
            model.hf_model, str(folder), is_trainable=trainable, autocast_adapter_dtype=False, use_safetensors=True
        )
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
