"""What config.json alone says of a model: the real classes' own files, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ALL, SHAPES, network_of

from luthier.catalog import find
from luthier.catalog.entry import KINDS, parse_for
from luthier.catalog.shape import context_length, entry_from_config, read_config
from luthier.errors import ModelNotFoundError

PAIRS = ("instruction", "autopilot")


def config_at(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("architecture", ALL)
def test_an_entry_is_derived_from_the_config_that_the_real_class_writes(architecture: str, tmp_path: Path) -> None:
    network = network_of(architecture)
    network.config.save_pretrained(tmp_path)
    entry = entry_from_config("org/mine", tmp_path)
    pairs = architecture == "t5"
    assert entry.names == ("org/mine",)
    assert entry.architecture == type(network).__name__
    assert entry.kinds == (PAIRS if pairs else KINDS)
    assert (entry.default_template is not None) == pairs
    assert parse_for(entry, {})["add_input_output_demarcation_key"] is not pairs
    assert entry.shape["model_type"] == SHAPES[architecture]["model_type"]
    config = network.config
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    assert entry.context_length == next((getattr(config, name) for name in names if hasattr(config, name)), 0)


def test_an_encoder_decoder_takes_the_ways_of_flan_t5(tmp_path: Path) -> None:
    flan = find("flan-t5-base")
    assert flan is not None
    entry = entry_from_config("mine", config_at(tmp_path, is_encoder_decoder=True, n_positions=512))
    assert (entry.kinds, entry.default_template, entry.context_length) == (flan.kinds, flan.default_template, 512)
    name = "add_input_output_demarcation_key"
    assert parse_for(entry, {})[name] == parse_for(flan, {})[name]


def test_nothing_is_said_that_the_config_does_not_say(tmp_path: Path) -> None:
    entry = entry_from_config("mine", config_at(tmp_path))
    assert (entry.architecture, entry.parameters, entry.context_length) == ("unknown", 0, 0)
    assert (entry.licence.name, entry.licence.eula, entry.verified) == ("not known", False, ())
    assert (entry.lora_targets, entry.attention.kernels, entry.attention.packing) == ((), (), False)


@pytest.mark.parametrize(
    "config", [{"max_position_embeddings": 64}, {"n_positions": 64}, {"max_seq_len": 64}, {"seq_length": 64}]
)
def test_context_length(config: dict[str, int], tmp_path: Path) -> None:
    known = find("bloom-3b")
    assert context_length(config_at(tmp_path, **config), known) == 64
    assert context_length(config_at(tmp_path), known) == 2048
    assert context_length(config_at(tmp_path)) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\xff"])
def test_a_broken_config_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelNotFoundError, match=rf"^{tmp_path}/config\.json: expected a JSON object; copy .*$"):
        read_config(tmp_path)
