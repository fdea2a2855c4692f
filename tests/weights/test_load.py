"""Loading weights: which are taken, in which type, on which device, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, network_of, write_model

from luthier.errors import ModelNotFoundError, SettingError, UserError
from luthier.weights.load import compute_dtype, find_device, load_model, weights_bytes
from luthier.weights.model import Model
from luthier.weights.quantize import Quantization

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound model, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "model")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def refusal(folder: Path, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_model(folder, CPU, torch.float32, **how)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{folder}: ")
    return str(caught.value)


def state(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.network.state_dict())


# What is loaded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_weights_are_those_stored(architecture: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", architecture)
    model = load_model(folder, CPU, torch.float32)
    stored = network_of(architecture).state_dict()
    assert state(model).keys() == stored.keys()
    assert all(torch.equal(state(model)[name], value) for name, value in stored.items())
    assert not model.network.training
    assert not model.has_adapter
    assert weights_bytes(folder) == (folder / WEIGHTS).stat().st_size


def test_shards_are_one_model(sound: Path, tmp_path: Path) -> None:
    load_model(sound, CPU, torch.float32).hf_model.save_pretrained(str(tmp_path), max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert not (tmp_path / WEIGHTS).exists()
    shards = load_model(tmp_path, CPU, torch.float32)
    assert all(torch.equal(state(shards)[name], value) for name, value in load_file(sound / WEIGHTS).items())
    assert weights_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("frozen", "dtype", "kept"),
    [(True, torch.bfloat16, torch.bfloat16), (True, torch.float32, torch.float32),
     (False, torch.bfloat16, torch.float32), (False, torch.float32, torch.float32)],
)  # fmt: skip
def test_weights_that_train_are_kept_in_fp32(frozen: bool, dtype: torch.dtype, kept: torch.dtype, sound: Path) -> None:
    model = load_model(sound, CPU, dtype, frozen=frozen)
    assert {value.dtype for value in model.network.parameters()} == {kept}
    assert {value.requires_grad for value in model.network.parameters()} == {not frozen}
    assert bool(model.trainable_parameters()) is not frozen
    assert model.dtype is dtype


@pytest.mark.parametrize("from_scratch", [False, True])
def test_weights_may_train_in_bf16(from_scratch: bool, sound: Path) -> None:
    model = load_model(sound, CPU, torch.bfloat16, from_scratch=from_scratch, trained_in=torch.bfloat16)
    assert {value.dtype for value in model.trainable_parameters().values()} == {torch.bfloat16}
    rotary = next(value for name, value in model.network.named_buffers() if "inv_freq" in name)
    assert rotary.dtype is torch.float32


def test_bf16_weights_are_read_as_fp32_to_train(folder: Path) -> None:
    edit(folder, lambda weights: weights.update({name: value.bfloat16() for name, value in weights.items()}))
    model = load_model(folder, CPU, torch.float32)
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}


def test_from_scratch_the_seed_alone_decides(sound: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (load_model(sound, CPU, torch.float32, from_scratch=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)  # nobody else's randomness is touched
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(state(one)[name], state(same)[name])
    assert not torch.equal(state(one)[name], state(other)[name])
    assert not torch.equal(state(one)[name], load_file(sound / WEIGHTS)[name])


def test_from_scratch_needs_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert load_model(folder, CPU, torch.float32, from_scratch=True).trainable_parameters()


# What is refused


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.ckpt.index", "flax_model.msgpack", None])
def test_only_safetensors_are_read(other: str | None, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    if other:
        (folder / other).write_bytes(b"never opened")
    with pytest.raises(ModelNotFoundError, match=r"no weights: expected model\.safetensors, or pytorch_model\.bin"):
        load_model(folder, CPU, torch.float32)


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    edit(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert "the stored weights lack 1 parameters" in refusal(folder)
    assert "(first: model.layers.1.mlp.up_proj.weight)" in refusal(folder)


def test_a_weight_of_another_shape(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit(folder, lambda weights: weights.update({name: weights[name][:5].contiguous()}))
    assert "the weights do not fit config.json" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_torn_file(share: float, folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: int(len(whole) * share)])
    assert "not a language model that transformers can load" in refusal(folder)


def test_a_file_that_is_something_else(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"<html>404</html>" * 20)
    refusal(folder)


def test_a_shard_that_is_not_there(sound: Path, tmp_path: Path) -> None:
    load_model(sound, CPU, torch.float32).hf_model.save_pretrained(str(tmp_path), max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    refusal(tmp_path)


@pytest.mark.parametrize("from_scratch", [False, True])
@pytest.mark.parametrize(
    "config", ["{nope", "{}", json.dumps({"model_type": "nonesuch"}), json.dumps({"model_type": "vit"}), None]
)
def test_a_config_that_names_no_language_model(config: str | None, from_scratch: bool, folder: Path) -> None:
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    assert "not a language model that transformers can load" in refusal(folder, from_scratch=from_scratch)


@pytest.mark.parametrize("quantization", [None, Quantization(4)])
def test_weights_that_are_stored_quantized_are_refused(quantization: Quantization | None, folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text())
    stored["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(stored))
    said = refusal(folder, frozen=True, quantization=quantization)
    assert "its weights are stored quantized (gptq)" in said
    assert "bits=4 or bits=8" in said


def test_code_that_comes_with_a_model_is_never_run(folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text())
    stored |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "own.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    refusal(folder)
    assert not (folder / "ran").exists()


# Devices and types


def devices(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, True, "cuda:0"), (1, False, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_the_best_there_is(cuda: int, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    devices(monkeypatch, cuda, mps)
    assert str(find_device("auto")) == expected
    assert find_device("cpu") == CPU  # what is asked for by name is taken


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "mps", "cpu"])
def test_what_is_there_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    devices(monkeypatch, 2, True)
    assert find_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:2", "mps", "cpu:1", "xpu", "meta"])
def test_what_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    devices(monkeypatch, 2 if name == "cuda:2" else 0, False)
    with pytest.raises(SettingError, match=f"--device {name}: this machine has no such device"):
        find_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "CUDA", "cuda:x", "cuda:-1", "cpu cpu", "Auto"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=f"--device {name}: expected auto, cpu, cuda, cuda:N or mps"):
        find_device(name)


@pytest.mark.parametrize(
    ("asked", "device", "able", "expected"),
    [("auto", "cpu", True, torch.float32), ("auto", "mps", True, torch.float32), ("auto", "cuda", True, torch.bfloat16),
     ("auto", "cuda", False, torch.float32), ("bf16", "cpu", False, torch.bfloat16),
     ("bf16", "cuda", True, torch.bfloat16), ("fp16", "cuda", True, torch.float16),
     ("fp32", "cuda", True, torch.float32)],
)  # fmt: skip
def test_the_compute_type(
    asked: str, device: str, able: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert compute_dtype(asked, torch.device(device)) is expected
