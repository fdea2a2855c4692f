"""Quantized base weights: what is quantized, that adapters train on it as on its dequantized twin, and no noise."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_models import ALL, write_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from luthier.errors import SettingError
from luthier.weights import load as load_module
from luthier.weights import quantize
from luthier.weights.artifact import save_weights
from luthier.weights.load import load_model
from luthier.weights.lora import Adapter, attach_adapter, load_adapter, merge_adapter
from luthier.weights.lora_targets import resolve_lora_targets
from luthier.weights.model import Model
from luthier.weights.quantize import (
    EXPECTED,
    Quantization,
    count_weights,
    describe_quantization,
    is_quantized,
    quantization_scale_bytes,
    unquantized_layers,
)

CPU = torch.device("cpu")
INT8, NF4, FP4 = Quantization(8), Quantization(4), Quantization(4, "fp4", double_quant=False)
EVERY = {"int8": INT8, "nf4": NF4, "fp4": FP4}
PROBE = torch.arange(5, 45).reshape(2, 20)
TAUGHT = ("llama", "gpt_neox", "gpt2", "t5", "mixtral")


class Bases:
    """Base models in folders, each written once a session."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, architecture: str) -> Path:
        folder = self.root / architecture
        return folder if folder.exists() else write_model(folder, architecture)

    def load(
        self, architecture: str, quantization: Quantization | None = None, dtype: torch.dtype = torch.float32
    ) -> Model:
        return load_model(self.folder(architecture), CPU, dtype, frozen=True, quantization=quantization)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def run(network: nn.Module) -> Any:
    """Loss and logits of PROBE; of an encoder-decoder, of its first words as the answer to all of it."""
    config: Any = network.config
    labels = PROBE[:, :9].contiguous() if config.is_encoder_decoder else PROBE
    return network(input_ids=PROBE, labels=labels, use_cache=False)


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    found: Tensor = run(network).logits
    return found


def adapted(model: Model, seed: int = 0, **how: Any) -> Model:
    """With an adapter on all linear layers whose B matrices are not zero, as after training."""
    targets = resolve_lora_targets("all-linear", model).modules
    model = attach_adapter(model, Adapter(r=3, alpha=12, dropout=0.0, target_modules=targets, **how), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def gradients(model: Model) -> dict[str, Tensor]:
    model.network.train()
    run(model.network).loss.backward()
    return {name: cast(Tensor, parameter.grad) for name, parameter in model.trainable_parameters().items()}


def dequantized(model: Model) -> Model:
    """The same numbers in plain layers."""
    transformers_logging.set_verbosity_error()
    network = cast(Any, model.hf_model).dequantize(torch.float32)
    assert not is_quantized(network)
    network.requires_grad_(False)
    return Model(network.eval(), torch.float32, CPU)


# What is quantized


@pytest.mark.parametrize(
    ("architecture", "how"),
    [*((name, "nf4") for name in ALL), *((name, how) for name in TAUGHT for how in ("int8", "fp4"))],
)
def test_linear_layers_are_and_nothing_else_is(bases: Bases, architecture: str, how: str) -> None:
    model, plain = bases.load(architecture, EVERY[how]), bases.load(architecture)
    spared: set[Any] = {model.hf_model.get_output_embeddings(), model.hf_model.get_input_embeddings()}
    kinds = {8: ("Int8Params", torch.int8), 4: ("Params4bit", torch.bfloat16)}
    for name, module in model.hf_model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        linear = isinstance(module, nn.Linear) and module not in spared and not name.endswith("DenseReluDense.wo")
        expected = kinds[EVERY[how].bits] if linear else ("Parameter", torch.float32)
        assert (type(weight).__name__, weight.dtype) == expected, name
    assert model.trainable_parameters() == {}
    assert not model.network.training
    found, true = logits(model.network), logits(plain.network)
    assert not torch.equal(found, true)
    # Weights of such a spread, rounded to 8 and to 4 bits; a matrix laid the wrong way round is off by more than all.
    assert (found - true).norm() / true.norm() < (0.1 if how == "int8" else 0.6)


def test_transformers_still_passes_falcons_layers_over(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, it quantizes classes derived from nn.Linear: remove `standard_linear_layers`."""
    monkeypatch.setattr(quantize, "LINEAR_SUBCLASSES", ())
    with pytest.raises(SettingError, match="no linear layer"):
        bases.load("falcon_7b", NF4)
    monkeypatch.undo()
    assert bases.load("falcon_7b", NF4)
    layer = cast(Any, bases.load("falcon_7b").hf_model).transformer.h[0].self_attention.query_key_value
    assert type(layer).__name__ == "FalconLinear"  # as it was, when nothing is quantized


def test_what_stays_in_full_is_said(bases: Bases) -> None:
    assert unquantized_layers(bases.load("llama", NF4).hf_model) == {}
    assert unquantized_layers(bases.load("gpt2", INT8).hf_model) == {}
    for quantization in EVERY.values():
        assert count_weights(bases.load("gpt2", quantization).hf_model) == count_weights(bases.load("gpt2").hf_model)
    assert unquantized_layers(bases.load("t5", NF4).hf_model) == {"DenseReluDense.wo": 4 * 32 * 48}
    experts = {"experts.gate_up_proj": 2 * 4 * 96 * 32, "experts.down_proj": 2 * 4 * 32 * 48}
    assert unquantized_layers(bases.load("mixtral", NF4).hf_model) == experts
    assert describe_quantization(bases.load("llama", NF4).hf_model) == "43% of its weights quantized"
    assert describe_quantization(bases.load("mixtral", INT8).hf_model) == (
        "10% of its weights quantized, not experts.gate_up_proj and experts.down_proj"
    )


@pytest.mark.parametrize(("quantization", "share"), [(INT8, 1.0), (NF4, 0.5), (FP4, 0.5)])
def test_it_takes_less_memory(bases: Bases, quantization: Quantization, share: float) -> None:
    def size(model: Model) -> int:
        return sum(value.numel() * value.element_size() for value in model.hf_model.parameters())

    quantized, plain = bases.load("llama", quantization), bases.load("llama")
    linear = sum(m.weight.numel() for m in plain.hf_model.modules() if isinstance(m, nn.Linear)) - 320 * 32
    assert size(plain) - size(quantized) == linear * (4 - share)
    before = quantization_scale_bytes(quantized.hf_model)
    outputs = 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)
    blocks = linear // 64
    scales = {INT8: outputs * 4, NF4: blocks + 4 * 2 * 7, FP4: blocks * 4}[quantization]  # NF4: and one for them
    assert before == pytest.approx(scales, rel=0.15)
    assert quantization_scale_bytes(plain.hf_model) == 0
    logits(quantized.network)
    assert quantization_scale_bytes(quantized.hf_model) == before
    assert (
        quantization_scale_bytes(
            attach_adapter(quantized, Adapter(r=2, alpha=4, dropout=0.0, target_modules=("q_proj",)), 0).network
        )
        == before
    )


@pytest.mark.parametrize("double", [True, False])
def test_the_scales_are_quantized_too(bases: Bases, double: bool) -> None:
    model = bases.load("llama", Quantization(4, "nf4", double))
    state = cast(Any, model.hf_model).model.layers[0].self_attn.q_proj.weight.quant_state
    assert (state.nested, state.quant_type) == (double, "nf4")
    assert state.absmax.dtype is (torch.uint8 if double else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_it_computes_in_the_runs_type(bases: Bases, architecture: str, how: str, dtype: torch.dtype) -> None:
    model = adapted(bases.load(architecture, EVERY[how], dtype))
    assert {value.dtype for value in model.trainable_parameters().values()} == {torch.float32}
    norm = next(value for name, value in model.hf_model.named_parameters() if "norm" in name)
    assert norm.dtype is dtype
    for layer in model.hf_model.modules():
        if hasattr(layer, "compute_dtype"):
            assert cast(Any, layer).compute_dtype is dtype
    with model.autocast():
        found = gradients(model)
    assert all(bool(value.isfinite().all()) and bool(value.any()) for value in found.values())


def test_a_model_without_linear_layers(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "is_quantized", lambda network: False)
    with pytest.raises(SettingError, match="bits=4: LlamaForCausalLM has no linear layer; set bits=16"):
        bases.load("llama", NF4)


# Training on it


@pytest.mark.parametrize("scored_first", [False, True])
@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("architecture", TAUGHT)
def test_gradients_are_those_of_the_dequantized_twin(
    bases: Bases, architecture: str, how: str, scored_first: bool
) -> None:
    """Also after a forward for scores, for which bitsandbytes has layouts of its own."""
    model = adapted(bases.load(architecture, EVERY[how]))
    if scored_first:
        logits(model.network.eval())
    found, expected = gradients(model), gradients(adapted(dequantized(bases.load(architecture, EVERY[how]))))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.any(), name
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5 + 1e-3 * float(value.abs().max()))


@pytest.mark.skipif(
    not importlib.import_module("bitsandbytes.functional").has_avx512bf16(), reason="a trap of AVX512-BF16 processors"
)
def test_bitsandbytes_still_lays_weights_out_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, a layer can be scored and then trained: shorten `keep_weights` in weights/quantize.py."""
    monkeypatch.setattr(load_module, "keep_weights", lambda network: None)
    wide = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    LlamaForCausalLM(wide).save_pretrained(str(tmp_path))
    model = adapted(load_model(tmp_path, CPU, torch.float32, frozen=True, quantization=NF4))
    logits(model.network.eval())
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        gradients(model)


def test_peft_still_makes_bitsandbytes_lose_its_scales(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, DoRA on int8 weights runs on a CPU by itself: remove `_keep_scales` from weights/quantize.py."""
    monkeypatch.setattr(quantize, "_keep_scales", lambda layer, arguments: None)
    model = adapted(bases.load("llama", INT8), use_dora=True)  # a first pass was run to find the layers to adapt
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
        gradients(model)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("how", ["int8", "nf4"])
@pytest.mark.parametrize("architecture", TAUGHT)
def test_an_adapter_learns(bases: Bases, architecture: str, how: str, dora: bool) -> None:
    model = attach_adapter(bases.load(architecture, EVERY[how]), _default(bases, architecture, dora), 0)

    def frozen() -> dict[str, Tensor]:
        held = ((name, value.data) for name, value in model.network.named_parameters() if not value.requires_grad)
        return {name: value.contiguous().view(torch.uint8).clone() for name, value in held}

    before = frozen()
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=0.02)
    model.network.train()
    losses = []
    for _ in range(8):
        loss = run(model.network).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2
    after = frozen()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def _default(bases: Bases, architecture: str, dora: bool) -> Adapter:
    targets = resolve_lora_targets("default", bases.load(architecture)).modules
    return Adapter(r=4, alpha=16, dropout=0.0, target_modules=targets, use_dora=dora)


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("architecture", TAUGHT)
def test_a_stored_adapter_comes_back(bases: Bases, architecture: str, how: str, tmp_path: Path) -> None:
    model = adapted(bases.load(architecture, EVERY[how]))
    save_weights(model, bases.folder(architecture), tmp_path)
    again = load_adapter(bases.load(architecture, EVERY[how]), tmp_path)
    assert torch.equal(logits(again.network), logits(model.network.eval()))


def test_a_gpt2_adapter_fits_the_base_that_is_not_quantized(bases: Bases, tmp_path: Path) -> None:
    """Its stored matrices lie the other way round than the quantized layers': the adapter's config says so."""
    save_weights(adapted(bases.load("gpt2", NF4)), bases.folder("gpt2"), tmp_path)
    found = logits(load_adapter(bases.load("gpt2"), tmp_path).network)  # PEFT would warn, and warnings are errors
    torch.testing.assert_close(found, logits(adapted(bases.load("gpt2")).network.eval()))


# Merging


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("architecture", TAUGHT)
def test_merged_into_the_dequantized_base_it_is_what_was_trained(bases: Bases, architecture: str, how: str) -> None:
    """And into the unquantized base it is not: by how much is for `luthier export` to say."""
    trained = adapted(bases.load(architecture, EVERY[how]))
    # In training mode bitsandbytes multiplies by the dequantized weights; in int8 scores it rounds the inputs as well.
    expected = logits(trained.network.train(how == "int8"))
    exact = merge_adapter(adapted(dequantized(bases.load(architecture, EVERY[how]))))
    scale = expected.abs().max()
    assert (logits(exact) - expected).abs().max() <= 1e-4 * scale
    default = merge_adapter(adapted(bases.load(architecture)))
    assert (logits(default) - expected).abs().max() > 1e-3 * scale


def test_the_quantized_base_is_not_merged_into(bases: Bases) -> None:
    with pytest.raises(AssertionError):
        merge_adapter(adapted(bases.load("llama", NF4)))


# The library


def test_the_record_of_a_run() -> None:
    for quantization in EVERY.values():
        record = quantization.to_record()
        assert Quantization.from_record(record) == quantization
        assert (record["library"], record["library_version"]) == ("bitsandbytes", metadata.version("bitsandbytes"))
    assert Quantization.from_record(None) is None
    assert list(map(str, EVERY.values())) == ["8 bits (int8)", "4 bits (nf4, double quantization)", "4 bits (fp4)"]


@pytest.mark.parametrize(
    ("quantization", "said"),
    [(NF4, "bits=4: needs bitsandbytes, .* or set bits=16"),
     (INT8, "int8_quantization=True: needs bitsandbytes, .* or set int8_quantization=False and bits=16")],
)  # fmt: skip
def test_without_the_library(
    bases: Bases, monkeypatch: pytest.MonkeyPatch, quantization: Quantization, said: str
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    for attempt in (quantization.to_record, lambda: bases.load("llama", quantization)):
        with pytest.raises(SettingError, match=said) as caught:
            attempt()
        assert "pip install 'luthier[quant]'" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_it_logs_of_nothing_is_dropped_and_the_rest_is_not(bases: Bases, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        logits(bases.load("llama", INT8).network)
        assert [record.message for record in caplog.records if record.name.startswith("bitsandbytes")] == []
        for name in EXPECTED:
            logging.getLogger(name).warning("a library is missing")
    assert len([record for record in caplog.records if record.message == "a library is missing"]) == len(EXPECTED)


@pytest.mark.parametrize("module", EXPECTED)
def test_bitsandbytes_still_logs_of_nothing(module: str) -> None:
    """When this fails, the line is gone or worded anew: take it out of quantize.EXPECTED, or word it so."""
    assert EXPECTED[module] in inspect.getsource(importlib.import_module(module))


CHILD = """
import sys
import luthier.weights.load
assert "bitsandbytes" in sys.modules and "peft" in sys.modules
import kernels
assert kernels.asked == []
"""


def test_importing_says_nothing_and_fetches_nothing(tmp_path: Path) -> None:
    """With `kernels` installed, bitsandbytes would have it fetch code on some processors as soon as it is imported."""
    (tmp_path / "kernels.py").write_text("asked = []\n\ndef get_kernel(*names, **how):\n    asked.append(names)\n")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
