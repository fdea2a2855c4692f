"""A batch of rows, packed or padded, gives the losses and gradients of its rows alone: for every architecture.

The reference is Hugging Face's plain forward, one row at a time.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import ALL, network_of
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, PreTrainedModel

from luthier.data.batches import Layout, collate
from luthier.layers.attention import PACKABLE_ARCHITECTURES
from luthier.layers.batch import Batch
from luthier.weights.model import Model

Rows = list[tuple[np.ndarray, np.ndarray]]


class InMemory:
    """A token store of given rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.lengths = np.array([len(ids) for ids, _ in rows])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[index]


def random_rows(lengths: list[int], seed: int = 0) -> Rows:
    """Rows whose second half carries loss; the lengths are at least 2."""
    generator = np.random.default_rng(seed)
    return [(generator.integers(4, 320, length), np.arange(length) >= length // 2) for length in lengths]


def batch_of(network: PreTrainedModel, rows: Rows, packed: bool) -> Batch:
    start = network.config.decoder_start_token_id if network.config.is_encoder_decoder else None
    return collate(InMemory(rows), list(range(len(rows))), Layout(packed, 3, start))  # type: ignore[arg-type]


def model_of(network: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Model:
    return Model(network, dtype, torch.device("cpu"))


def reference_loss(network: PreTrainedModel, rows: Rows) -> Tensor:
    """Summed nats by Hugging Face's plain forward, one row at a time."""
    total = torch.zeros(())
    for ids, trained in rows:
        if network.config.is_encoder_decoder:
            cut = int(trained.argmax())
            source, target = torch.from_numpy(ids[:cut])[None], torch.from_numpy(ids[cut:])[None]
            total = total + network(input_ids=source, labels=target, use_cache=False).loss * (len(ids) - cut)
            continue
        labels = torch.from_numpy(np.where(trained, ids, -100))[None]
        logits = network(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits
        flat = logits[:, :-1].flatten(0, 1)
        total = total + F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return total


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


LENGTHS = [7, 2, 40, 3, 22]  # beyond the windows of 16, too
PACKED_ATTENTION = [name for name in ALL if type(network_of(name)).__name__ in PACKABLE_ARCHITECTURES]


def test_the_packing_architectures_are_the_ones_tried() -> None:
    assert {type(network_of(name)).__name__ for name in ALL} >= PACKABLE_ARCHITECTURES
    assert set(ALL) - set(PACKED_ATTENTION) == {"falcon_7b", "falcon_40b", "bloom", "gptj", "gpt_neo", "mpt"}


@pytest.mark.parametrize(
    ("name", "packed"),
    [(name, packed) for name in ALL for packed in (True, False) if name in PACKED_ATTENTION or not packed],
)
def test_a_batch_equals_its_rows_alone(name: str, packed: bool) -> None:
    network = network_of(name)
    rows = random_rows(LENGTHS)
    reference = reference_loss(network, rows)
    reference.backward()
    expected = gradients(network)

    model = model_of(network)
    assert model.has_linear_head
    batch = batch_of(network, rows, packed)
    loss = model.loss(batch)
    loss.backward()
    found = gradients(network)

    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=4e-5)
    assert model.scores(batch).loss_N.sum().item() == pytest.approx(reference.item(), rel=1e-6)


@pytest.mark.parametrize("name", PACKED_ATTENTION)
def test_a_packed_row_does_not_see_its_neighbours(name: str) -> None:
    network = network_of(name)
    model = model_of(network)
    first, second = random_rows([9, 14])
    other = random_rows([9], seed=5)[0]
    labels_of_second = -int(second[1].sum())
    together = model.scores(batch_of(network, [first, second], True))
    beside_another = model.scores(batch_of(network, [other, second], True))
    # A mixture's experts multiply the tokens of all rows at once, in products of other sizes.
    near = 1e-6 if name == "mixtral" else 0.0
    torch.testing.assert_close(
        together.loss_N[labels_of_second:], beside_another.loss_N[labels_of_second:], rtol=near, atol=0.0
    )
    assert not torch.equal(together.loss_N[:labels_of_second], beside_another.loss_N[:labels_of_second])


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_stays_close(name: str) -> None:
    network = network_of(name)
    batch = batch_of(network, random_rows(LENGTHS), name in PACKED_ATTENTION)
    exact = model_of(network).loss(batch)
    low = model_of(network, torch.bfloat16).loss(batch)
    low.backward()
    assert torch.isfinite(low)
    assert low.item() == pytest.approx(exact.item(), rel=2e-2)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(network).values())


@pytest.mark.parametrize("name", ALL)
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    network = network_of(name)
    model = model_of(network)
    batch = batch_of(network, random_rows(LENGTHS), name in PACKED_ATTENTION)
    network.train()
    model.loss(batch).backward()
    expected = gradients(network)
    model.enable_activation_checkpointing()
    model.loss(batch).backward()
    found = gradients(network)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-6, atol=1e-7)


def test_a_router_that_balances_its_experts_adds_its_loss() -> None:
    network = network_of("mixtral")
    rows = random_rows([24])
    plain = model_of(network).loss(batch_of(network, rows, True))
    network.config.output_router_logits = True
    balanced = model_of(network).loss(batch_of(network, rows, True))
    ids, trained = rows[0]
    labels = torch.from_numpy(np.where(trained, ids, -100))[None]
    reference = network(input_ids=torch.from_numpy(ids)[None], labels=labels, use_cache=False)
    assert reference.aux_loss > 0
    assert balanced.item() / trained.sum() == pytest.approx(reference.loss.item(), rel=1e-6)
    assert balanced.item() > plain.item()


def test_a_head_of_another_kind_is_noticed_and_the_models_own_logits_are_used() -> None:
    """Cohere scales its logits, which Luthier's head knows nothing of."""
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, logit_scale=0.25, initializer_range=0.1, pad_token_id=3, eos_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    network = CohereForCausalLM(config).eval()
    model, rows = model_of(network), random_rows(LENGTHS)
    assert not model.has_linear_head
    assert not model.supports_packing
    batch = batch_of(network, rows, packed=False)
    reference = reference_loss(network, rows)
    assert model.loss(batch).item() == pytest.approx(reference.item(), rel=1e-6)
    assert model.scores(batch).loss_N.sum().item() == pytest.approx(reference.item(), rel=1e-6)
    smooth = model.loss(batch, smoothing=0.1)
    assert smooth.item() != pytest.approx(reference.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_smoothed_targets_give_hugging_faces_smoothed_loss(name: str) -> None:
    network = network_of(name)
    model, rows = model_of(network), random_rows(LENGTHS)
    batch = batch_of(network, rows, packed=True)
    logits = model._hf_logits(batch_of(network, rows, packed=False))
    expected = F.cross_entropy(logits, batch.labels_N, reduction="sum", label_smoothing=0.2)
    assert model.loss(batch, smoothing=0.2).item() == pytest.approx(expected.item(), rel=1e-5)
