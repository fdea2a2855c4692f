"""Against llama.cpp itself: the ids of its vocabularies, and models converted by its converter and back.

Slow: downloads llama.cpp's sources (76 MB) once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp_build
import pytest
import torch
import transformers
from gguf_models import MERGES, TOKENS
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from luthier.catalog import gguf_header
from luthier.gguf.tokenizer import write_tokenizer
from luthier.weights.convert import convert_to_safetensors

pytestmark = pytest.mark.slow
VOCABULARIES = (
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt",
    "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_ids_that_llama_cpp_ships(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's repository has these vocabularies with texts and their ids (.inp and .out), from the publishers'."""
    monkeypatch.setattr(gguf_header, "_check_kind", lambda header: None)  # they have no weights, which is an error
    file = llama_cpp_build.sources() / "models" / f"ggml-vocab-{name}.gguf"
    write_tokenizer(gguf_header.read_header(file), tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = file.with_suffix(".gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    lines = file.with_suffix(".gguf.out").read_text("utf-8").split("\n")
    pairs = list(zip(texts, ([int(number) for number in line.split()] for line in lines), strict=False))
    assert len(pairs) >= 46
    assert [backend.encode(text, add_special_tokens=False).ids for text, _ in pairs] == [ids for _, ids in pairs]
    assert all(backend.decode(ids) == text for text, ids in pairs)


SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
             "short_factor": [1 + 0.1 * pair for pair in range(8)],
             "long_factor": [1.5 + 0.7 * pair for pair in range(8)]}  # fmt: skip
QWEN35 = {"head_dim": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
          "linear_value_head_dim": 16}  # fmt: skip
GPT = {"vocab_size": 512, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
# llama.cpp's architecture -> [(class of the config, its settings, options of the converter)]
MODELS: dict[str, list[tuple[str, dict[str, Any], tuple[str, ...]]]] = {
    "bloom": [("BloomConfig", GPT | {"hidden_size": 64}, ())],
    "gemma2": [("Gemma2Config", SIZES | {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}, ())],
    "gemma3": [
        (
            "Gemma3TextConfig",
            SIZES | {"num_hidden_layers": 6, "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32},
            (),
        )
    ],
    "gpt2": [("GPT2Config", GPT | {"n_embd": 64, "n_positions": 256, "n_ctx": 256}, ())],
    "lfm2": [("Lfm2Config", SIZES | {"full_attn_idxs": [1, 3]}, ())],
    "llama": [
        ("LlamaConfig", SIZES, ()),
        ("LlamaConfig", SIZES | {"attention_bias": True}, ()),
        ("LlamaConfig", SIZES | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}, ()),
        ("MistralConfig", SIZES | {"head_dim": 32, "sliding_window": None}, ()),
    ],
    "mamba": [("MambaConfig", {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}, ())],
    "nemotron": [("NemotronConfig", SIZES, ())],
    "phi3": [
        ("Phi3Config", SIZES | {"pad_token_id": None}, ()),
        ("Phi3Config", SIZES | {"pad_token_id": None, "partial_rotary_factor": 0.5}, ()),
        (
            "Phi3Config",
            SIZES | {"pad_token_id": None, "original_max_position_embeddings": 64, "rope_parameters": LONG_ROPE},
            (),
        ),
    ],
    "qwen2": [("Qwen2Config", SIZES, ()), ("Qwen2Config", SIZES | {"rope_parameters": YARN}, ())],
    "qwen3": [("Qwen3Config", SIZES | {"head_dim": 32}, ())],
    "qwen35": [
        ("Qwen3_5TextConfig", SIZES | QWEN35, ("--no-mtp",)),
        ("Qwen3_5TextConfig", SIZES | QWEN35, ()),
    ],
    "qwen3moe": [
        (
            "Qwen3MoeConfig",
            SIZES | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                     "norm_topk_prob": True},
            (),
        )
    ],
    "stablelm": [
        ("StableLmConfig", SIZES, ()),
        ("StableLmConfig", SIZES | {"use_parallel_residual": True, "use_qkv_bias": True}, ()),
    ],
    "starcoder2": [("Starcoder2Config", SIZES | {"sliding_window": None}, ())],
    "t5": [
        (
            "T5Config",
            {"vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
             "pad_token_id": 0, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "eos_token_id": 1},
            (),
        )
    ],
}  # fmt: skip


def test_every_readable_architecture_is_tried() -> None:
    assert set(MODELS) == set(gguf_header.READABLE)


@pytest.mark.parametrize(
    ("architecture", "kind", "settings", "options"),
    [(name, *model) for name, shapes in MODELS.items() for model in shapes],
)
def test_converted_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    architecture: str, kind: str, settings: dict[str, Any], options: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    config = getattr(transformers, kind)(**settings)
    family: Any = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    original = family.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in original.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif architecture != "mamba":
                parameter.mul_(3)
    original.save_pretrained(folder)
    save_vocabulary(folder)
    write_published_names(folder)
    if architecture == "qwen35" and not options:
        add_prediction_layer(folder)
    file = llama_cpp_build.convert(folder, tmp_path / "m.gguf", *options, any_vocabulary=True)
    assert gguf_header.read_header(file).architecture == architecture
    read = family.from_pretrained(convert_to_safetensors(file, lambda _: None), dtype=torch.float32).eval()
    ids = torch.randint(2, 512, (1, 48))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :16]} if config.is_encoder_decoder else {})
    reference = family.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(read(**inputs).logits, reference(**inputs).logits)


def add_prediction_layer(folder: Path) -> None:
    """Add a layer for multi-token prediction, which published Qwen 3.5 models have and transformers does not load."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if name.startswith("model.layers.3.")]:
        weights[name.replace("model.layers.3.", "mtp.layers.0.")] = weights[name].clone()
    weights["mtp.fc.weight"] = torch.randn(64, 128)
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        weights[f"mtp.{name}.weight"] = torch.randn(64)
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mtp_num_hidden_layers": 1}))


def save_vocabulary(folder: Path) -> None:
    """A byte-level vocabulary of 512 tokens."""
    tokens = [*TOKENS, *(f"Ġx{number}" for number in range(512 - len(TOKENS)))]
    merges = [(merge.split(" ")[0], merge.split(" ")[1]) for merge in MERGES]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    backend.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[0], "eos_token": tokens[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_published_names(folder: Path) -> None:
    """Write the names of rotary settings, and of T5's own output layer, as published models have them."""
    config = json.loads((folder / "config.json").read_text())
    rotary = config.get("rope_parameters") or {}
    if "rope_theta" in rotary:
        config["rope_theta"] = rotary["rope_theta"]
    if rotary.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in rotary.items() if name != "rope_theta"}
    if config["model_type"] == "t5":
        file = folder / "model.safetensors"
        weights = load_file(file)
        weights["lm_head.weight"] = 0.3 * torch.randn_like(weights["shared.weight"])
        save_file(weights, file, metadata={"format": "pt"})
        config |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    (folder / "config.json").write_text(json.dumps(config))
