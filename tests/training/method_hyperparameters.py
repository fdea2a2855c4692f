"""The effects of the hyperparameters of the quantized and other adapters; test_every_hyperparameter.py runs them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from training.job_folders import lay_out, run
from training.training_harness import FinishedJob, HyperparameterChecks, TrainingHarness, differ

from luthier.errors import SettingError
from luthier.weights.model import Model
from luthier.weights.quantize import Quantization, quantization_scale_bytes
from luthier.weights.resolved_model import resolve_model

METHOD_CHECKS = HyperparameterChecks()
# Losses of the base model: rounding its weights to 8 and to 4 bits moves them by less than this, and by more than 0.
BITS_MOVE = {8: 0.05, 4: 0.5}
QUERY_AND_VALUE = {"lora_target_modules": "q_proj,v_proj"}  # learns slowly enough that runs stay close


def reloaded(done: FinishedJob) -> Model:
    """The run's model as `generate` and `evaluate` load it."""
    return resolve_model(str(done.folder.root), lambda _: None).load(torch.device("cpu"), torch.float32)


def size(done: FinishedJob) -> int:
    """Bytes of the frozen weights, scales included."""
    network = reloaded(done).network
    frozen = (value for name, value in network.named_parameters() if "lora_" not in name)
    return sum(value.numel() * value.element_size() for value in frozen) + quantization_scale_bytes(network)


def adapter_config(done: FinishedJob) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.folder.model / "adapter_config.json").read_text("utf-8"))
    return found


def learns_as_if_unquantized(done: FinishedJob, usual: FinishedJob, bits: int) -> None:
    """Close to the run on full weights and not equal, and the model that was scored is the one that was trained."""
    moved = done.metrics["base"]["loss"] - usual.metrics["base"]["loss"]
    assert 0 < abs(moved) < BITS_MOVE[bits]
    assert done.metrics["tuned"]["loss"] < done.metrics["base"]["loss"]
    assert done.losses[-1] < done.losses[0] - 0.3
    assert done.losses == pytest.approx(usual.losses, abs=BITS_MOVE[bits])
    assert done.losses != usual.losses
    assert {value.dtype for value in done.weights.values()} == {torch.float32}
    assert done.metrics["cost"]["parameters"] == usual.metrics["cost"]["parameters"]
    record = done.read("model/luthier.json")["quantization"]
    assert (record["bits"], record["library"]) == (bits, "bitsandbytes")


@METHOD_CHECKS.of("continue_as")
def _(harness: TrainingHarness) -> None:
    """A run as the model: its adapter is trained further, or merged, which makes the result a whole model."""
    first, rows = harness.run().folder.root, harness.rows_folder("plain")
    further, merged = (
        lay_out(harness.root / f"continued-{form}", first, rows, continue_as=form, max_steps=1)
        for form in ("adapter", "merged")
    )
    for folder, file in ((further, "adapter_model.safetensors"), (merged, "model.safetensors")):
        run(folder)
        assert [path.name for path in folder.model.glob("*model.safetensors")] == [file]


@METHOD_CHECKS.of("use_rslora")
def _(harness: TrainingHarness) -> None:
    """alpha / sqrt(r) is sqrt(8) times alpha / r."""
    done, usual = harness.run(use_rslora=True), harness.run()
    assert done.losses[0] == usual.losses[0]  # B is zero: no scale shows yet
    assert done.steps[0]["gradient_norm"] == pytest.approx(8**0.5 * usual.steps[0]["gradient_norm"], rel=1e-4)
    assert differ(done, usual)
    same = harness.run(use_rslora=True, lora_alpha=8, lora_r=4)
    assert same.losses == harness.run(lora_alpha=16, lora_r=4).losses
    assert adapter_config(done)["use_rslora"] is True


@METHOD_CHECKS.of("use_dora")
def _(harness: TrainingHarness) -> None:
    done, usual = harness.run(use_dora=True), harness.run()
    magnitudes = {name: value for name, value in done.weights.items() if "magnitude" in name}
    assert len(magnitudes) == 2 * 7  # layers, linear layers of each
    assert not any("magnitude" in name for name in usual.weights)
    frozen = resolve_model(str(harness.model), lambda _: None).load(torch.device("cpu"), torch.float32).hf_model
    for name, value in magnitudes.items():
        site = name.removeprefix("base_model.model.").partition(".lora_")[0]
        start = frozen.get_parameter(f"{site}.weight").norm(dim=1)
        assert not torch.allclose(value, start, atol=1e-4)
        torch.testing.assert_close(value, start, rtol=0.5, atol=0.5)
    assert done.losses[0] == pytest.approx(usual.losses[0], abs=1e-5)  # it starts from the base model, too
    assert done.losses[-1] != pytest.approx(usual.losses[-1], abs=1e-4)
    extra = done.metrics["cost"]["trainable_parameters"] - usual.metrics["cost"]["trainable_parameters"]
    assert extra == sum(value.numel() for value in magnitudes.values()) > 0


@METHOD_CHECKS.of("int8_quantization")
def _(harness: TrainingHarness) -> None:
    done, usual = harness.run(**QUERY_AND_VALUE, int8_quantization=True), harness.run(**QUERY_AND_VALUE)
    learns_as_if_unquantized(done, usual, 8)
    assert "base model in 8 bits (int8): 43% of its weights quantized" in done.screen
    assert size(done) < size(usual)
    assert harness.run(**QUERY_AND_VALUE, bits=8).losses == done.losses
    assert not differ(harness.run(**QUERY_AND_VALUE, int8_quantization=False), usual)
    with pytest.raises(SettingError, match="int8_quantization=True and bits=4 exclude each other"):
        harness.run(int8_quantization=True, bits=4)
    with pytest.raises(SettingError, match="int8_quantization=True with peft_type=none"):
        harness.run(int8_quantization=True, peft_type="none")


@METHOD_CHECKS.of("bits")
def _(harness: TrainingHarness) -> None:
    usual, eight, four = (harness.run(**QUERY_AND_VALUE, bits=bits) for bits in (16, 8, 4))
    assert not differ(usual, harness.run(**QUERY_AND_VALUE))
    assert usual.record["quantization"] is None
    learns_as_if_unquantized(eight, usual, 8)
    learns_as_if_unquantized(four, usual, 4)
    assert size(four) < size(eight) < size(usual)
    base = [abs(done.metrics["base"]["loss"] - usual.metrics["base"]["loss"]) for done in (eight, four)]
    assert base[0] < base[1]
    assert "base model in 4 bits (nf4, double quantization): 43% of its weights quantized" in four.screen
    idle = harness.run(bits=4, peft_type="none")  # JumpStart's clients send its default with everything
    assert any("bits has no effect with peft_type=none" in warning for warning in idle.record["warnings"])


@METHOD_CHECKS.of("quant_type")
def _(harness: TrainingHarness) -> None:
    nf4, fp4 = harness.run(**QUERY_AND_VALUE, bits=4), harness.run(**QUERY_AND_VALUE, bits=4, quant_type="fp4")
    learns_as_if_unquantized(fp4, harness.run(**QUERY_AND_VALUE), 4)
    assert fp4.metrics["base"]["loss"] != nf4.metrics["base"]["loss"]
    assert "base model in 4 bits (fp4, double quantization)" in fp4.screen
    assert resolve_model(str(fp4.folder.root), lambda _: None).quantization == Quantization(4, "fp4")
    idle = harness.run(**QUERY_AND_VALUE, quant_type="fp4")
    assert any("quant_type has no effect with bits=16" in warning for warning in idle.record["warnings"])


@METHOD_CHECKS.of("double_quant")
def _(harness: TrainingHarness) -> None:
    double, once = harness.run(**QUERY_AND_VALUE, bits=4), harness.run(**QUERY_AND_VALUE, bits=4, double_quant=False)
    learns_as_if_unquantized(once, harness.run(**QUERY_AND_VALUE), 4)
    assert once.metrics["base"]["loss"] != double.metrics["base"]["loss"]
    assert size(once) > size(double)
    assert "base model in 4 bits (nf4):" in once.screen
