"""Tiny models of every text class of the installed transformers, by rule: the class's own config, scaled down.

RULES has the value of each field that a config may have; OWN what a model type needs instead.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

VOCABULARY = 320
RULES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_embed", "embedding_size", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "dim_ff", "dff",
                     "encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size",
                     "intermediate_size_mlp", "shared_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
                     "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
                     "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    "vocab_size": VOCABULARY, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "rotary_dim": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_dense_layers": 1,
    "eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 3, "initializer_range": 0.1, "decoder_start_token_id": 3,
}  # fmt: skip
_LATENT: dict[str, Any] = {"num_key_value_heads": 4}  # multi-head latent attention has as many keys as queries
_HYBRID: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_TWO_HEAD_SIZES: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16,
                                   "num_experts": None}  # fmt: skip
_DECODER_START: dict[str, Any] = {"decoder_start_token_id": 3}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
                     "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _HYBRID),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear"),
                    _HYBRID | _LATENT | {"qk_head_dim": 16, "linear_head_dim": 8, "linear_num_heads": 4,
                                         "num_experts_per_token": 2, "num_expert_group": 1}),
    "longcat_flash": _LATENT | {"head_dim": 8, "qk_head_dim": 16, "expert_ffn_hidden_size": 48, "zero_expert_num": 2,
                                "moe_topk": 2},
    "zaya": {"num_experts_per_tok": 1},
    "xlnet": {"max_position_embeddings": None},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": 48, "laurel_rank": 4,
                     "layer_types": ["sliding_attention", "full_attention"] * 2,
                     "activation_sparsity_pattern": [0.0] * 4},
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _TWO_HEAD_SIZES),
    **dict.fromkeys(("longt5", "switch_transformers"), _DECODER_START),
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "ssm_state_size": 4,
                   "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 16,
                   "num_hidden_layers": None},
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "falcon": {"head_dim": None},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
              "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"],
                        "lru_width": 32},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "attn_layer_indices": [1], "mamba_d_state": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_d_state": 4,
                         "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "zamba": {"num_hidden_layers": 6, "mamba_d_state": 4, "attention_head_dim": 16, "attention_hidden_size": 64,
              "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid"], "head_dim": None},
    "zamba2": {"num_hidden_layers": 6, "mamba_d_state": 4, "attention_head_dim": 16, "attention_hidden_size": 64,
               "n_mamba_heads": 8, "mamba_headdim": 8, "adapter_rank": 4,
               "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid"], "head_dim": None},
    "marian": {"pad_token_id": 3, "decoder_vocab_size": VOCABULARY},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_embds": False},
}  # fmt: skip

# Classes that attend to later tokens unless their config says is_decoder.
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl",
    "xlnet",
)  # fmt: skip
# Left out of the sweep, with the reason.
EXCEPTIONS: dict[str, str] = {
    **dict.fromkeys(ENCODERS, "an encoder, which is refused"),
    **dict.fromkeys(("mbart", "plbart"), "config.json states no decoder_start_token_id, which is refused"),
    "t5": "in the table above",
    "xmod": "it needs the language of each row, and is refused",
    "prophetnet": "its own loss predicts several tokens at once, which Luthier's does not",
    "youtu": "transformers 5.23 sets the padding token's embedding to zero when it loads the weights",
    "xlstm": "its chunked layers equal themselves to 3e-5 only",
    "reformer": "its forward takes multiples of its chunk length only",
    **dict.fromkeys(("seamless_m4t", "seamless_m4t_v2"), "a speech model"),
    "fsmt": "its forward shifts labels by rules of its own; not tried",
    **dict.fromkeys(("cohere_compass_text", "dots3_note_text", "qwen4_exp_text"), "no tiny config by rule; not tried"),
}


def model_types() -> list[str]:
    """Every model type with a causal or sequence-to-sequence language model, without those that also see or hear."""
    names = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    return sorted(name for name in names if not CONFIG_MAPPING[name].sub_configs)


def config_of_type(model_type: str) -> Any:
    """The class's config, scaled down."""
    config_class = CONFIG_MAPPING[model_type]
    standard = config_class()
    fields = {name: value for name, value in RULES.items() if _has_number(standard, name)} | OWN.get(model_type, {})
    return config_class(**{name: value for name, value in fields.items() if value is not None})


def _has_number(config: Any, field: str) -> bool:
    """Whether the config has the field, and one value of it for all layers."""
    try:
        return hasattr(config, field) and not isinstance(getattr(config, field), list | tuple | dict)
    except AmbiguousGlobalPerLayerAttributeError:
        return True


def network_of_type(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the class in fp32, in evaluation mode."""
    torch.manual_seed(seed)
    config = config_of_type(model_type)
    family: Any = AutoModelForSeq2SeqLM if _is_seq2seq(model_type, config) else AutoModelForCausalLM
    network: PreTrainedModel = family.from_config(config)
    network.config.architectures = [type(network).__name__]
    network.eval()
    return network


def _is_seq2seq(model_type: str, config: Any) -> bool:
    return bool(model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and config.is_encoder_decoder)
