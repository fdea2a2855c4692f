"""Exported config.json: the base's fields, the older forms of the new ones, and the same config in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from architectures.tiny_classes import EXCEPTIONS, config_of_type, model_types
from transformers import AutoConfig

from luthier.weights.config_forms import complete_config

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
          "rope_type": "llama3"}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
# Fields as publishers write them for transformers 4.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama 3": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16",
                "max_position_embeddings": 131072, "pretraining_tp": 1, "tie_word_embeddings": False},
    "code llama": {"model_type": "llama", "rope_theta": 1000000, "rope_scaling": None},
    "linear": {"model_type": "llama", "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral": {"model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None, "head_dim": 128},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": False, "max_window_layers": 28},
    "qwen3": {"model_type": "qwen3", "rope_theta": 1000000, "rope_scaling": YARN},
    "redpajama": {"model_type": "gpt_neox", "rotary_pct": 1.0, "rotary_emb_base": 10000},
    "pythia": {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000},
    "gpt2": {"model_type": "gpt2", "n_ctx": 1024, "n_positions": 1024},
    "phi": {"model_type": "phi", "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_scaling": None},
    "phi3": {"model_type": "phi3", "rope_theta": 10000.0, "original_max_position_embeddings": 4096, "hidden_size": 64,
             "num_attention_heads": 4, "max_position_embeddings": 131072, "rope_scaling": LONGROPE},
    "gemma3": {"model_type": "gemma3_text", "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
               "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "stablelm": {"model_type": "stablelm", "partial_rotary_factor": 0.25, "rope_theta": 10000},
    "falcon": {"model_type": "falcon", "rope_theta": 10000.0, "rope_scaling": None, "alibi": False},
}  # fmt: skip
# Fields that transformers 5 keeps as attributes and reads nothing from.
UNREAD = {"n_ctx", "pretraining_tp", "rope_theta", "_name_or_path"}


def read(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    fields: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict()
    return {name: value for name, value in fields.items() if name not in UNREAD}


def write(folder: Path, config: Any) -> dict[str, Any]:
    """What transformers writes of a config."""
    config.save_pretrained(str(folder))
    written: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return written


@pytest.mark.parametrize("base", PUBLISHED.values(), ids=PUBLISHED)
def test_the_publishers_fields_stay_and_transformers_reads_the_same(base: dict[str, Any], tmp_path: Path) -> None:
    expected = read(tmp_path / "base", base)
    written = write(tmp_path / "written", AutoConfig.from_pretrained(tmp_path / "base"))
    completed = complete_config(written, base)
    stated = {name: value for name, value in base.items() if value is not None and name != "torch_dtype"}
    assert completed.items() >= stated.items()
    assert completed.items() >= written.items()
    assert completed["torch_dtype"] == written["dtype"] if "dtype" in written else "torch_dtype" not in completed
    assert read(tmp_path / "again", completed) == expected


@pytest.mark.parametrize("base", PUBLISHED.values(), ids=PUBLISHED)
def test_they_are_derived_for_a_base_that_lacks_them(base: dict[str, Any], tmp_path: Path) -> None:
    read(tmp_path / "base", base)
    written = write(tmp_path / "written", AutoConfig.from_pretrained(tmp_path / "base"))
    derived = complete_config(written, {})
    for name in ("rope_theta", "rotary_emb_base", "partial_rotary_factor", "n_ctx", "rope_local_base_freq"):
        assert derived.get(name) == base.get(name), name
    assert derived.get("rotary_pct", 1.0) == base.get("rotary_pct", 1.0)
    scaling = base.get("rope_scaling")
    if not scaling:
        assert "rope_scaling" not in derived
    else:
        kind = scaling.get("rope_type", scaling.get("type"))
        assert (
            derived["rope_scaling"].items()
            >= {**{k: v for k, v in scaling.items() if k != "type"}, "rope_type": kind}.items()
        )


def test_what_describes_the_bases_storage_is_not_carried_over() -> None:
    base = {"torch_dtype": "float16", "quantization_config": {"bits": 4}, "auto_map": {"AutoConfig": "mine.Config"},
            "transformers_version": "4.31.0", "_name_or_path": "/home/me"}  # fmt: skip
    assert complete_config({"model_type": "llama", "dtype": "float32"}, base) == {
        "model_type": "llama", "dtype": "float32", "torch_dtype": "float32"
    }  # fmt: skip


@pytest.mark.parametrize("model_type", [name for name in model_types() if name not in EXCEPTIONS])
def test_transformers_reads_the_same_config_of_every_class(model_type: str, tmp_path: Path) -> None:
    written = write(tmp_path / "written", config_of_type(model_type))
    expected = read(tmp_path / "before", written)
    assert read(tmp_path / "after", complete_config(written, {})) == expected
