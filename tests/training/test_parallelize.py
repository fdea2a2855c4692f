"""A model laid over ranks: each holds its share, and together they compute what one would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import network_of, write_model
from token_rows import VOCAB, write_store
from torch import nn
from torch.distributed.tensor import DTensor
from training.rank_harness import run_on_ranks

from luthier.catalog.hyperparameters import parse
from luthier.data.batches import Layout, collate
from luthier.data.tokens import TokenStore
from luthier.layers.batch import Batch
from luthier.training.config import TrainingSettings, read_settings
from luthier.training.parallelize import (
    DataParallelModel,
    ShardedModel,
    fsdp_units,
    parallelize,
    sharding_warnings,
    transformer_blocks,
    without_labels,
)
from luthier.training.process_group import ProcessGroup
from luthier.training.tensor_file import local_tensor
from luthier.weights.generate import generate
from luthier.weights.load import load_model
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.model import Model

CPU = torch.device("cpu")


def settings(**values: Any) -> TrainingSettings:
    return read_settings(parse({name: str(value) for name, value in values.items()}))


LENGTHS = [9, 21, 5, 14, 17]


def write(root: Path, architecture: str, **shape: Any) -> str:
    """A model and rows for it; return where they are."""
    write_model(root / "model", architecture, **shape)
    write_store(root / "rows", LENGTHS)
    return str(root)


def load(root: str, asked: TrainingSettings) -> Model:
    """The model that the settings ask for, with an adapter where they do."""
    method = asked.method
    model = load_model(Path(root) / "model", CPU, torch.float32, frozen=method.lora, quantization=method.quantization)
    return (
        attach_adapter(model, Adapter(r=4, alpha=8, dropout=0.0, target_modules=("q_proj", "v_proj")), seed=1)
        if method.lora
        else model
    )


def batch_of(root: str, model: Model, *rows: int) -> Batch:
    return collate(
        TokenStore(Path(root) / "rows", VOCAB),
        list(rows),
        Layout(model.supports_packing, 3, model.decoder_start_token_id),
    )


# How it is laid


@pytest.mark.parametrize(
    ("architecture", "blocks", "inner"),
    [("llama", 2, 0), ("gpt2", 2, 0), ("gpt_neox", 2, 0), ("mixtral", 2, 0), ("mpt", 2, 0), ("t5", 4, 2)],
)
def test_the_layers_are_found(architecture: str, blocks: int, inner: int) -> None:
    network = network_of(architecture)
    found = transformer_blocks(network)
    assert len(found) == blocks
    within = {id(parameter) for layer in found for parameter in layer.parameters()}
    every = {id(parameter): name for name, parameter in network.named_parameters()}
    assert within < every.keys()
    assert len({type(layer) for layer in found}) == 1
    assert [type(unit) for unit in fsdp_units(network)[:inner]] == [nn.Embedding] * inner
    assert fsdp_units(network)[inner:] == found


def test_one_rank_keeps_the_model_as_it_is(tmp_path: Path) -> None:
    model = load(write(tmp_path, "llama"), settings())
    assert parallelize(model, ProcessGroup(), CPU, settings(enable_fsdp=True)) is model


@pytest.mark.parametrize(
    ("fsdp", "bits", "size", "expected"),
    [
        (True, 16, 1, "enable_fsdp=True has no effect on one rank"),
        (True, 8, 2, "8-bit base weights cannot be sharded"), (True, 4, 2, ""), (True, 16, 2, ""),
        (False, 8, 2, ""), (False, 16, 1, ""),
    ],
)  # fmt: skip
def test_what_a_user_should_know_is_said(fsdp: bool, bits: int, size: int, expected: str) -> None:
    warnings = sharding_warnings(settings(enable_fsdp=fsdp, bits=bits), size)
    assert expected in " ".join(warnings)
    assert bool(warnings) == bool(expected)


def held(parameters: list[nn.Parameter]) -> tuple[int, int]:
    """Numbers that this rank holds of some parameters, and how many there are."""
    return sum(local_tensor(parameter).numel() for parameter in parameters), sum(each.numel() for each in parameters)


def shares(group: ProcessGroup, root: str, values: dict[str, Any]) -> dict[str, tuple[int, int]]:
    asked = settings(enable_fsdp=True, **values)
    model = parallelize(load(root, asked), group, CPU, asked)
    assert isinstance(model, ShardedModel)
    parameters = list(model.network.parameters())
    return {
        "trained": held([parameter for parameter in parameters if parameter.requires_grad]),
        "frozen": held([parameter for parameter in parameters if not parameter.requires_grad]),
    }


@pytest.mark.parametrize("values", [{"peft_type": "none"}, {}, {"bits": 4}, {"int8_quantization": True}], ids=str)
def test_each_rank_holds_its_share(tmp_path: Path, values: dict[str, Any]) -> None:
    root = write(tmp_path, "llama")
    found = run_on_ranks(2, shares, root, values)
    for kind, (first, whole) in found[0].items():
        second, again = found[1][kind]
        assert whole == again
        if kind == "frozen" and "int8_quantization" in values:
            assert first == second == whole > 0
        else:
            assert first + second == whole
            assert abs(first - second) <= 0.1 * whole


# What it computes


def gradients(group: ProcessGroup, root: str, fsdp: bool) -> dict[str, Any]:
    """Three batches on two ranks: rank 1 has one, and computes a second time where others need it to."""
    asked = settings(peft_type="none", enable_fsdp=fsdp)
    model = parallelize(load(root, asked), group, CPU, asked)
    assert isinstance(model, DataParallelModel)
    own = [batch_of(root, model, 0, 1), batch_of(root, model, 4)] if group.is_main else [batch_of(root, model, 2, 3)]
    loss = 0.0
    for batch in [*own, *([without_labels(own[0])] if fsdp and not group.is_main else [])]:
        part = model.loss(batch)
        part.backward()
        loss += part.item()
    parameters = model.trainable_parameters()
    if not fsdp:
        group.all_reduce([parameter.grad for parameter in parameters.values() if parameter.grad is not None])
    assert all(isinstance(parameter, DTensor) == fsdp for parameter in parameters.values())
    return {"loss": loss, "gradient": {name: _whole(parameter) for name, parameter in parameters.items()}}


def _whole(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad


@pytest.mark.parametrize("fsdp", [False, True])
def test_gradients_are_added_up(tmp_path: Path, fsdp: bool) -> None:
    root = write(tmp_path, "gpt2")  # its head is its embedding
    model = load(root, settings(peft_type="none"))
    expected = model.loss(batch_of(root, model, 0, 1, 2, 3, 4))
    expected.backward()
    found = run_on_ranks(2, gradients, root, fsdp)
    assert sum(said["loss"] for said in found) == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.trainable_parameters().items():
        assert parameter.grad is not None
        for said in found:
            torch.testing.assert_close(said["gradient"][name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_batch_without_labels_adds_nothing(tmp_path: Path) -> None:
    root = write(tmp_path, "llama")
    model = load(root, settings(peft_type="none"))
    batch = without_labels(batch_of(root, model, 0, 1))
    assert batch.completion_tokens == 0
    loss = model.loss(batch)
    loss.backward()
    assert loss.item() == 0
    for parameter in model.trainable_parameters().values():
        assert parameter.grad is not None
        assert not parameter.grad.any()


CONTEXT = 24
# The last two leave room for less than is asked for; the answers of the others end at different places.
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15] * 9, [16, 17], [18, 19] * 10, [20] * (CONTEXT - 1)]


def answers(model: Model, stop_ids: list[int]) -> list[list[int]]:
    found = generate(model, PROMPTS, stop_ids=stop_ids, pad_id=3, max_new_tokens=9, batch_size=1)
    return [answer.ids for answer in found]


def use(group: ProcessGroup, root: str, values: dict[str, Any], stop_ids: list[int]) -> dict[str, Any]:
    asked = settings(enable_fsdp=True, **values)
    model = parallelize(load(root, asked), group, CPU, asked)
    assert isinstance(model, ShardedModel)
    model.network.eval()
    batch = batch_of(root, model, 0, 1, 2)
    scores = model.scores(batch)  # outside of `each`, too
    assert all(isinstance(parameter, DTensor) for parameter in model.network.parameters())
    found = answers(model, stop_ids)
    assert all(isinstance(parameter, DTensor) for parameter in model.network.parameters())
    model.gather_trained_weights()
    tied = model.hf_model.get_output_embeddings().weight is model.hf_model.get_input_embeddings().weight
    state = {name: parameter.detach() for name, parameter in model.trainable_parameters().items()}
    return {"loss": scores.loss_N.tolist(), "answers": found, "state": state, "tied": tied}


@pytest.mark.parametrize(
    ("architecture", "values"), [("gpt2", {"peft_type": "none"}), ("llama", {}), ("t5", {"peft_type": "none"})]
)
def test_shards_score_and_answer_as_the_whole(tmp_path: Path, architecture: str, values: dict[str, Any]) -> None:
    root = write(tmp_path, architecture, positions=CONTEXT)
    model = load(root, settings(**values))
    model.network.eval()
    free = answers(model, [2])
    stop_ids = [free[0][1], free[2][3]]
    lengths = [len(answer) for answer in answers(model, stop_ids)]
    if not model.is_encoder_decoder:  # beside it, a prompt that has room for four would be driven out of its context
        assert lengths[3] == 9
    assert len(set(lengths)) > 1
    found = run_on_ranks(2, use, root, values, stop_ids)
    expected = model.scores(batch_of(root, model, 0, 1, 2)).loss_N
    for said in found:
        np.testing.assert_allclose(said["loss"], expected.tolist(), rtol=1e-5)
        assert said["answers"] == answers(model, stop_ids)
    state = found[0]["state"]
    assert state.keys() == model.trainable_parameters().keys()
    assert all(torch.equal(state[name], parameter) for name, parameter in model.trainable_parameters().items())
    assert found[0]["tied"] == (architecture == "gpt2")
    assert all(parameter.numel() == 0 for parameter in found[1]["state"].values())


def round_both(group: ProcessGroup, root: str) -> dict[str, torch.Tensor]:
    asked = settings(enable_fsdp=True, peft_type="none")
    model = parallelize(load(root, asked), group, CPU, asked)
    assert isinstance(model, ShardedModel)
    model.dtype = torch.bfloat16
    model.round_shards()
    assert all(parameter.dtype is torch.float32 for parameter in model.trainable_parameters().values())
    model.gather_trained_weights()
    return {name: parameter.detach() for name, parameter in model.trainable_parameters().items()}


def test_what_is_scored_is_what_is_stored(tmp_path: Path) -> None:
    root = write(tmp_path, "llama")
    model = load(root, settings(peft_type="none"))
    rounded = run_on_ranks(2, round_both, root)[0]
    for name, parameter in model.trainable_parameters().items():
        assert rounded[name].dtype is torch.bfloat16
        assert torch.equal(rounded[name], parameter.bfloat16())
