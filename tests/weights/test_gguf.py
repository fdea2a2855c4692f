"""A GGUF file becomes the model that was written into it: equal weights and logits, or one line that says why not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from gguf_files import Quantized, quantize_q4_1, quantize_q8_0, write_gguf
from gguf_models import TOKENS, VOCABULARY, llama_metadata, llama_tensors, tiny_llama, write_llama
from safetensors import safe_open

from luthier.catalog.locate import locate
from luthier.data.tokenize import Tokenizer
from luthier.errors import CapacityError, ModelNotFoundError
from luthier.weights.convert import convert_to_safetensors
from luthier.weights.converted_folder import conversion_source
from luthier.weights.load import load_model
from luthier.weights.resolved_model import resolve_model

IDS = torch.arange(3, 67).unsqueeze(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def converted_logits(file: Path) -> torch.Tensor:
    folder = convert_to_safetensors(file, lambda _: None)
    model = load_model(folder, torch.device("cpu"), torch.float32, frozen=True)
    with torch.no_grad():
        logits: torch.Tensor = model.network(input_ids=IDS).logits
    return logits


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def refusal(file: Path) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        convert_to_safetensors(file, lambda _: None)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    "options",
    [{}, {"tie_word_embeddings": False}, {"attention_bias": True}, {"mlp_bias": True}, {"head_dim": 32}],
    ids=["tied", "untied", "attention biases", "MLP biases", "wide heads"],
)
def test_equal_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_llama(**options)
    extra = {"llama.attention.key_length": 32, "llama.rope.dimension_count": 32} if "head_dim" in options else {}
    assert torch.equal(converted_logits(write_llama(tmp_path / "m.gguf", model, extra)), logits(model))


SCALED: dict[str, Any] = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rotary_scaling_is_read(tmp_path: Path, kind: str) -> None:
    model = tiny_llama(rope_parameters=SCALED | {"rope_type": kind})
    extra = {
        "llama.rope.scaling.type": kind,
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    assert torch.equal(converted_logits(write_llama(tmp_path / "m.gguf", model, extra)), logits(model))
    folder = convert_to_safetensors(tmp_path / "m.gguf", lambda _: None)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    # Also as transformers 4 and other programs read it, for an adapter on this base.
    assert config["rope_theta"] == 10000.0
    assert config["rope_scaling"]["rope_type"] == kind


def llama3_factors(theta: float, pairs: int, factor: float, original: int) -> np.ndarray[Any, Any]:
    """Llama 3's rotary factors, as llama.cpp's converter stores them."""
    waves = 2 * np.pi * theta ** (np.arange(pairs) / pairs)
    smooth = np.clip((original / waves - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


@pytest.mark.parametrize(("factor", "original"), [(8.0, 32), (32.0, 64), (32.0, 1000)])
def test_llama3_scaling_is_recovered_from_its_factors(tmp_path: Path, factor: float, original: int) -> None:
    rotary = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": factor, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": original}  # fmt: skip
    model = tiny_llama(rope_parameters=rotary)
    tensors = llama_tensors(model) | {"rope_freqs.weight": llama3_factors(10000.0, 8, factor, original)}
    file = write_gguf(tmp_path / "m.gguf", llama_metadata(model) | VOCABULARY, tensors)
    found = converted_logits(file)
    config = json.loads((convert_to_safetensors(file, lambda _: None) / "config.json").read_text())
    assert config["rope_parameters"] == rotary
    assert torch.equal(found, logits(model))


def test_other_rotary_factors_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    factors = np.array([1, 1, 2, 7, 3, 8, 8, 8], np.float32)
    tensors = llama_tensors(model) | {"rope_freqs.weight": factors}
    file = write_gguf(tmp_path / "m.gguf", llama_metadata(model) | VOCABULARY, tensors)
    assert refusal(file).startswith("the factors in rope_freqs.weight are not Llama 3's")


def test_half_precision_weights_are_kept_exactly(tmp_path: Path) -> None:
    model = tiny_llama()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    tensors = llama_tensors(model, np.float16)
    file = write_gguf(tmp_path / "m.gguf", llama_metadata(model) | VOCABULARY, tensors)
    assert torch.equal(converted_logits(file), logits(model))


@pytest.mark.parametrize(("quantize", "name"), [(quantize_q8_0, "Q8_0"), (quantize_q4_1, "Q4_1")])
def test_quantized_weights_are_dequantized_exactly(
    tmp_path: Path, quantize: Callable[[Any], Quantized], name: str
) -> None:
    model = tiny_llama()
    tensors: dict[str, Any] = llama_tensors(model)
    quantized = {key: quantize(values) for key, values in tensors.items() if values.ndim == 2}
    file = write_gguf(tmp_path / "m.gguf", llama_metadata(model) | VOCABULARY, tensors | quantized)
    lines: list[str] = []
    folder = convert_to_safetensors(file, lines.append)
    assert f"(llama, {name}, " in lines[0]
    stored = write_gguf(
        tmp_path / "values.gguf", llama_metadata(model) | VOCABULARY,
        tensors | {key: values.values.astype(np.float32) for key, values in quantized.items()},
    )  # fmt: skip
    with safe_open(folder / "model.safetensors", "pt") as weights:
        down = weights.get_tensor("model.layers.0.mlp.down_proj.weight")
        assert torch.equal(down, torch.from_numpy(quantized["blk.0.ffn_down.weight"].values))
    assert torch.equal(converted_logits(file), converted_logits(stored))
    assert not torch.equal(converted_logits(file), logits(model))


def test_the_folder_is_complete_and_made_once(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama())
    lines: list[str] = []
    folder = convert_to_safetensors(file, lines.append)
    assert convert_to_safetensors(file, lines.append) == folder
    assert re.fullmatch(
        r"dequantizing m\.gguf \(llama, F32, .* MB\) to .* MB of float32 safetensors, once: .*", lines[0]
    )
    assert lines[1] == f"using the weights dequantized from m.gguf before: {folder}"
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["rms_norm_eps"], config["eos_token_id"], config["architectures"]) == (1e-5, 1, ["LlamaForCausalLM"])
    source = conversion_source(folder)
    assert source is not None
    assert (source["folder"], list(source["files"])) == (str(tmp_path), ["m.gguf"])
    assert source["gguf"] == {"architecture": "llama", "quantization": "F32", "name": "Tiny Test"}
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, len(TOKENS))
    assert tokenizer.chat is not None


def test_a_damaged_conversion_is_made_again(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama())
    folder = convert_to_safetensors(file, lambda _: None)
    (folder / "config.json").write_text("{}")
    lines: list[str] = []
    assert convert_to_safetensors(file, lines.append) == folder
    assert lines[0].startswith("dequantizing")


def test_a_gguf_file_is_a_model_by_name(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama())
    resolved = resolve_model(str(file), lambda _: None)
    assert resolved.entry is not None
    assert (resolved.entry.architecture, resolved.entry.licence.name) == ("LlamaForCausalLM", "apache-2.0")
    assert resolved.entry.parameters == sum(parameter.numel() for parameter in tiny_llama().parameters())
    assert resolved.load(torch.device("cpu"), torch.float32).network(input_ids=IDS).logits.shape == (1, 64, len(TOKENS))


def test_an_unreadable_architecture_lists_the_readable(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama(), {"general.architecture": "command-r"})
    assert refusal(file) == (
        "GGUF files of architecture 'command-r' cannot be read; those of bloom, gemma2, gemma3, gpt2, lfm2, llama, "
        "mamba, nemotron, phi3, qwen2, qwen3, qwen35, qwen3moe, stablelm, starcoder2, t5 can; take the model's "
        "safetensors instead"
    )


def without(tensors: dict[str, Any]) -> None:
    del tensors["blk.1.ffn_up.weight"]


def with_more(tensors: dict[str, Any]) -> None:
    tensors["blk.0.attn_q_norm.weight"] = np.ones(16, np.float32)


def misshapen(tensors: dict[str, Any]) -> None:
    tensors["blk.1.ffn_up.weight"] = np.ones((64, 64), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "it lacks 1 parameters of LlamaForCausalLM (first: model.layers.1.mlp.up_proj.weight)"),
        (with_more, "some would be lost, take the model's safetensors instead"),
        (misshapen, "transformers cannot read its weights: "),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    model = tiny_llama()
    tensors = llama_tensors(model)
    change(tensors)
    assert message in refusal(write_gguf(tmp_path / "m.gguf", llama_metadata(model) | VOCABULARY, tensors))


@pytest.mark.parametrize("name", ["logit_scale", "rope.scaling.yarn_attn_factor", "nextn_predict_layers"])
def test_metadata_that_would_be_lost(tmp_path: Path, name: str) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama(), {f"llama.{name}": 2})
    assert refusal(file).startswith(f"llama.{name} changes what the model computes")


def test_an_unknown_kind_of_rotary_scaling(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama(), {"llama.rope.scaling.type": "dynamic"})
    assert refusal(file) == "rope.scaling.type is 'dynamic'; expected none, linear, yarn, longrope"


def test_too_little_memory_is_said_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(CapacityError, match=r"needs .* MB of memory and 0.0 MB are free") as caught:
        convert_to_safetensors(file, lambda _: None)
    assert str(file) in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_too_small_a_disk_is_said_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CapacityError, match="set LUTHIER_CACHE to a larger disk"):
        convert_to_safetensors(file, lambda _: None)


def test_a_folder_with_one_gguf_file(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", tiny_llama())
    found = locate(str(tmp_path), {})
    assert found.folder == file
    assert found.with_folder(convert_to_safetensors(file, lambda _: None)).entry is not None
