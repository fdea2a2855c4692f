"""LoRA (Hu et al. 2021, arXiv:2106.09685) through PEFT: attach, save, load and merge an adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import SettingError, did_you_mean
from luthier.weights.model import Model

# Where PEFT has no default, or the field's practice differs from it, an entry of the catalogue says so.
FAMILY_TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "gpt_neox": ("query_key_value",),
    "gpt2": ("c_attn",),
}


def attach(model: Model, *, r: int, alpha: int, dropout: float, targets: tuple[str, ...], seed: int) -> Model:
    """Freeze the model and put a new adapter on `targets`; its weights are kept in fp32."""
    plain = model.plain
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in plain.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), _peft_warnings_silenced():
        torch.manual_seed(seed)
        network = get_peft_model(plain, config, autocast_adapter_dtype=False)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return Model(network, model.dtype, model.device)


def resolve_targets(asked: str, network: PreTrainedModel, family_default: tuple[str, ...]) -> tuple[str, ...]:
    """The linear layers that `lora_target_modules` names.

    `asked` is default, all-linear, or comma-separated last parts of module names. SettingError for a name that no
    linear layer has, and for the output head, which stays the base model's.
    """
    linear = linear_names(network)
    if asked == "all-linear":
        return linear
    if asked == "default":
        targets = family_default or FAMILY_TARGETS.get(network.config.model_type, ())
        return tuple(name for name in targets if name in linear) or linear
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    if not names:
        raise SettingError(f"lora_target_modules={asked}: no layer is named; use default, all-linear, or names")
    for name in names:
        if name not in linear:
            raise SettingError(
                f"lora_target_modules={name}: {type(network).__name__} has no such linear layer"
                f"{did_you_mean(name, linear)}; it has {', '.join(linear)}, or use all-linear"
            )
    return names


def linear_names(network: PreTrainedModel) -> tuple[str, ...]:
    """Last name parts of all linear layers but the output head, in order of first appearance."""
    head = network.get_output_embeddings()
    names = (
        name.rpartition(".")[2]
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    return tuple(dict.fromkeys(names))


def load_adapter(model: Model, folder: Path, *, trainable: bool = False) -> Model:
    """Put the adapter stored in `folder` (PEFT layout, safetensors) on a base model."""
    with _peft_warnings_silenced():
        network: Any = PeftModel.from_pretrained(
            model.plain, str(folder), is_trainable=trainable, autocast_adapter_dtype=False, use_safetensors=True
        )
    return Model(network.eval(), model.dtype, model.device)


@contextmanager
def _peft_warnings_silenced() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for an attribute by its old name; tests/weights/test_lora.py says when not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def merge(model: Model) -> PreTrainedModel:
    """Add the adapter into the base weights and return the plain model; the wrapped one is used up."""
    assert isinstance(model.network, PeftModel)
    merged: PreTrainedModel = model.network.merge_and_unload()
    return merged
