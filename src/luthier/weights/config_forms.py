"""config.json in the forms that other programs read.

transformers 5 writes a model's rotary embedding as `rope_parameters` alone and leaves out fields that its config class
does not have. mlx-lm, llama.cpp's converter, CTranslate2 and transformers 4 read the publishers' older fields, and some
compute with a default where one is missing. Both forms are written; transformers 5 reads the same config from either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields of the base's config.json that do not hold for weights written anew.
NOT_CARRIED_OVER = frozenset(
    ("_name_or_path", "auto_map", "dtype", "quantization_config", "torch_dtype", "transformers_version")
)
_PARTIAL = "partial_rotary_factor"
_NEOX = {"rotary_emb_base": "rope_theta", "rotary_pct": _PARTIAL}
_TWO_BASES = ("gemma3_text", "gemma3n_text")  # rope_theta of full layers, rope_local_base_freq of sliding ones


def complete_config(written: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """`written` (by transformers 5) with what the base's config.json has besides, and the older forms of its fields.

    A field of `written` is never changed.
    """
    kept = {name: value for name, value in base.items() if name not in NOT_CARRIED_OVER and value is not None}
    config = {**_older_forms(written), **kept, **written}
    for name in config.keys() & base.keys():
        if isinstance(written.get(name), dict) and isinstance(base[name], dict) and name.endswith("_config"):
            config[name] = complete_config(written[name], base[name])
    return config


def _older_forms(written: Mapping[str, Any]) -> dict[str, Any]:
    forms: dict[str, Any] = {}
    model_type, rotary = written.get("model_type"), written.get("rope_parameters") or {}
    if "dtype" in written:
        forms["torch_dtype"] = written["dtype"]
    if model_type == "gpt2" and "n_positions" in written:
        forms["n_ctx"] = written["n_positions"]
    if model_type in _TWO_BASES and "full_attention" in rotary:
        sliding = rotary.get("sliding_attention", {})
        forms |= {"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {}
        rotary = rotary["full_attention"]
    if not isinstance(rotary.get("rope_type"), str):  # no rotary embedding, or one for each kind of layer
        return forms
    names = _NEOX if model_type == "gpt_neox" else {"rope_theta": "rope_theta", _PARTIAL: _PARTIAL}
    forms |= {older: rotary[name] for older, name in names.items() if rotary.get(name, 1.0) != 1.0}
    scaling = {name: value for name, value in rotary.items() if name not in ("rope_theta", _PARTIAL)}
    if rotary["rope_type"] != "default":
        forms["rope_scaling"] = scaling
    if rotary["rope_type"] == "longrope":
        forms |= {name: scaling[name] for name in ("original_max_position_embeddings",) if name in scaling}
    return forms
