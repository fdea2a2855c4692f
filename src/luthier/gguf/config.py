"""Builds a model's config from a GGUF file: transformers' reading of it, with what transformers 5.23 leaves out.

transformers maps a part of the metadata. The rest is added here (rotary scaling, head sizes, biases, windows, expert
sizes), so that the model computes what llama.cpp computes from the same file. tests/gguf converts a model of every
architecture in gguf_header.READABLE to GGUF and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from luthier.catalog.gguf_header import GgufHeader
from luthier.errors import ModelNotFoundError

# config.json's field <- the metadata key below the architecture's name, where the class has the field.
_FIELDS = {
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "n_positions": "context_length",
    "num_kv_heads": "attention.head_count_kv",
    "decoder_start_token_id": "decoder_start_token_id",
    "num_decoder_layers": "decoder_block_count",
}
_PREDICTION_LAYERS = "nextn_predict_layers"
# Keys that change what a model computes; one that nothing here or in transformers understands is an error.
_MEANINGFUL = (
    "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "attention.temperature",
    "attention.output_scale", "logit_scale", "embedding_scale", "residual_scale", "router_logit_softcapping",
    "expert_weights_scale", "expert_shared_count", "expert_group", "leading_dense_block_count", _PREDICTION_LAYERS,
)  # fmt: skip
_ROTARY_TYPES = ("none", "linear", "yarn", "longrope")
# Keys of rotary scaling that are read; of LongRoPE, transformers computes the attention factor from the lengths.
_ROTARY_KEYS = ("type", "factor", "original_context_length", "finetuned", "yarn_beta_fast", "yarn_beta_slow")


def read_gguf_config(header: GgufHeader) -> PreTrainedConfig:
    """The config of the model in a GGUF file.

    ModelNotFoundError for a file that transformers cannot read, and for metadata that would be lost.
    """
    try:
        config: Any = AutoConfig.from_pretrained(header.file.parent, gguf_file=header.file.name, local_files_only=True)
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFoundError(f"{header.file}: transformers cannot read it: {reason}") from None
    for field, key in _FIELDS.items():
        value = header.key(key)
        if value is not None and not isinstance(value, list) and hasattr(config, field):
            setattr(config, field, None if field == "sliding_window" and value == 0 else value)
    for adapt in (_set_biases, _set_rotary, _ADAPTATIONS.get(header.architecture)):
        if adapt is not None:
            adapt(header, config)
    _check_keys(header)
    _set_tokens(header, config)
    classes = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    config.architectures = [classes[config.model_type]]
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.__dict__.pop(name, None)
    for name, value in list(config.__dict__.items()):
        if isinstance(value, float):  # GGUF stores float32; its shortest decimal is what the publisher wrote
            setattr(config, name, float(str(np.float32(value))))
    model_config: PreTrainedConfig = config
    return model_config


def _set_biases(header: GgufHeader, config: Any) -> None:
    """Biases are tensors in GGUF, and a field of the config in transformers."""
    names = {tensor.name for tensor in header.tensors}
    for fields, suffix in (
        (("attention_bias", "use_qkv_bias"), "attn_q.bias"),
        (("mlp_bias", "use_bias"), "ffn_up.bias"),
        (("bias",), "attn_qkv.bias"),
    ):
        for field in fields:
            if hasattr(config, field):
                setattr(config, field, f"blk.0.{suffix}" in names)


def _set_rotary(header: GgufHeader, config: Any) -> None:
    """Rotary embeddings: partial, scaled by a formula, or by factors stored as a tensor."""
    rotary = getattr(config, "rope_parameters", None)
    if not isinstance(rotary, dict) or "rope_theta" not in rotary:
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = header.key("rope.dimension_count")
    if rotated and rotated < size:
        rotary["partial_rotary_factor"] = rotated / size
    if theta := header.key("rope.freq_base"):
        rotary["rope_theta"] = theta
    kind = header.key("rope.scaling.type") or "none"
    if kind not in _ROTARY_TYPES:
        raise ModelNotFoundError(f"{header.file}: rope.scaling.type is {kind!r}; expected {', '.join(_ROTARY_TYPES)}")
    original = header.key("rope.scaling.original_context_length") or config.max_position_embeddings
    if kind in ("linear", "yarn"):
        rotary |= {"rope_type": kind, "factor": header.key("rope.scaling.factor")}
    if kind == "yarn":
        rotary["original_max_position_embeddings"] = original
        for field, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if (value := header.key(f"rope.scaling.{key}")) is not None:
                rotary[field] = value
    if factors := header.read_floats("rope_freqs.weight"):
        rotary |= _llama3_scaling(header, rotary["rope_theta"], factors)
    if long := header.read_floats("rope_factors_long.weight"):
        short = header.read_floats("rope_factors_short.weight")
        rotary |= {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        rotary["original_max_position_embeddings"] = config.original_max_position_embeddings = original
    config.rope_parameters = rotary


def _llama3_scaling(header: GgufHeader, theta: float, factors: list[float]) -> dict[str, Any]:
    """Llama 3's scaling from the factors that a GGUF file stores in its place, one per pair of dimensions.

    A factor is 1 below the wavelength original / 4, the scaling factor above original, and interpolated between.
    """
    if all(value == 1 for value in factors):
        return {}
    wavelengths = [2 * math.pi * theta ** (pair / len(factors)) for pair in range(len(factors))]
    factor = float(max(factors))
    between = [(wave, value) for wave, value in zip(wavelengths, factors, strict=True) if 1 < value < factor]
    original = 8192
    if between:
        wave, value = between[len(between) // 2]
        smooth = (1 / value - 1 / factor) / (1 - 1 / factor)
        original = round(wave * (1 + 3 * smooth))
    for wave, value in zip(wavelengths, factors, strict=True):
        smooth = min(max((original / wave - 1) / 3, 0), 1)
        if not math.isclose(1 / ((1 - smooth) / factor + smooth), value, rel_tol=1e-3):
            raise ModelNotFoundError(
                f"{header.file}: the factors in rope_freqs.weight are not Llama 3's, which are the ones that "
                "transformers computes; take the model's safetensors instead"
            )
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }  # fmt: skip


def _adapt_gemma(header: GgufHeader, config: Any) -> None:
    """llama.cpp scales attention by the head size, but in the 27B models by the size of the states over the heads."""
    is_27b = header.key("block_count") in (46, 62)
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim


def _adapt_t5(header: GgufHeader, config: Any) -> None:
    """T5 1.1 and FLAN-T5 have gated GELU layers and an output layer of their own; the first T5 had neither."""
    names = {tensor.name for tensor in header.tensors}
    config.is_gated_act = "enc.blk.0.ffn_gate.weight" in names
    config.dense_act_fn = "gelu_new" if config.is_gated_act else "relu"
    config.feed_forward_proj = "gated-gelu" if config.is_gated_act else "relu"
    config.scale_decoder_outputs = "output.weight" not in names


_ADAPTATIONS: dict[str, Callable[[GgufHeader, Any], None]] = {
    "gemma2": _adapt_gemma,
    "gemma3": _adapt_gemma,
    "t5": _adapt_t5,
}


def count_prediction_layers(header: GgufHeader) -> int:
    """Layers at the end that predict further tokens (MTP): those that transformers leaves out of Qwen 3.5."""
    return int(header.key(_PREDICTION_LAYERS) or 0) if header.architecture == "qwen35" else 0


def _set_tokens(header: GgufHeader, config: Any) -> None:
    """The ids that begin and end a text, and stand for padding."""
    for field, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        setattr(config, field, header.metadata.get(f"tokenizer.ggml.{key}"))
    ends = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    known = [number for number in dict.fromkeys(ends) if number is not None]
    if known:
        config.eos_token_id = known[0] if len(known) == 1 else known


def _check_keys(header: GgufHeader) -> None:
    """ModelNotFoundError for metadata that changes what the model computes, and that nothing reads."""
    prefix = f"{header.architecture}."
    lost = [
        name
        for name, value in header.metadata.items()
        if name.startswith(prefix)
        and _is_meaningful(header, name.removeprefix(prefix))
        and value not in (0, 0.0, 1.0, False)
    ]
    if lost:
        raise ModelNotFoundError(
            f"{header.file}: {lost[0]} changes what the model computes, and transformers' reader has no place for it; "
            "take the model's safetensors instead"
        )


def _is_meaningful(header: GgufHeader, key: str) -> bool:
    if key.startswith("rope.scaling."):
        is_longrope = any(tensor.name == "rope_factors_long.weight" for tensor in header.tensors)
        return key.removeprefix("rope.scaling.") not in (*_ROTARY_KEYS, *(["attn_factor"] if is_longrope else []))
    return key.startswith(_MEANINGFUL) and not (key == _PREDICTION_LAYERS and count_prediction_layers(header))
