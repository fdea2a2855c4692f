"""Packed rows give the losses and gradients of the rows alone, for each architecture that claims it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import ARCHITECTURES, network_of
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from luthier.data.batches import collate
from luthier.layers.attention import PACKS_CLEANLY, packed_attention
from luthier.weights.model import Model

Rows = list[tuple[np.ndarray, np.ndarray]]


class InMemory:
    """A token store of given rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.lengths = np.array([len(ids) for ids, _ in rows])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[index]


def random_rows(lengths: list[int], vocab_size: int = 320, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    return [
        (generator.integers(0, vocab_size, length), (np.arange(length) >= length // 2) & (np.arange(length) > 0))
        for length in lengths
    ]


def reference_loss(network: PreTrainedModel, rows: Rows) -> Tensor:
    """Hugging Face's plain forward, one row at a time."""
    total = torch.zeros(())
    for ids, trained in rows:
        labels = torch.from_numpy(np.where(trained, ids, -100))[None]
        logits = network(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits
        flat = logits[:, :-1].flatten(0, 1)
        total = total + F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return total


def gradients(network: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_equals_its_rows_alone(architecture: str, packed: bool) -> None:
    network = network_of(architecture)
    assert type(network).__name__ in PACKS_CLEANLY
    rows = random_rows([7, 2, 30, 1, 12])
    reference = reference_loss(network, [row for row in rows if row[1].any()])
    reference.backward()
    expected = gradients(network)

    model = Model(network, torch.float32, torch.device("cpu"))
    batch = collate(InMemory(rows), [0, 1, 2, 3, 4], packed, pad_id=3)  # type: ignore[arg-type]
    loss = model.loss(batch)
    loss.backward()
    found = gradients(network)

    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5)
    scores = model.scores(batch)
    assert scores.loss_N.sum().item() == pytest.approx(reference.item(), rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_does_not_see_its_neighbours(architecture: str) -> None:
    model = Model(network_of(architecture), torch.float32, torch.device("cpu"))
    first, second = random_rows([9, 14])
    other = random_rows([9], seed=5)[0]
    labels_of_second = -int(second[1].sum())
    together = model.scores(collate(InMemory([first, second]), [0, 1], True, 3))  # type: ignore[arg-type]
    beside_another = model.scores(collate(InMemory([other, second]), [0, 1], True, 3))  # type: ignore[arg-type]
    assert torch.equal(together.loss_N[labels_of_second:], beside_another.loss_N[labels_of_second:])


def test_a_sliding_window_is_honoured() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, initializer_range=0.1,
    )  # fmt: skip
    network = MistralForCausalLM(config).eval()
    rows = random_rows([20, 11])
    model = Model(network, torch.float32, torch.device("cpu"))
    loss = model.loss(collate(InMemory(rows), [0, 1], True, 3))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(reference_loss(network, rows).item(), rel=1e-6)


def test_grouped_heads_attend_like_repeated_ones() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    module = torch.nn.Module()
    grouped, _ = packed_attention(module, query, key, value, None, row_lengths=(5, 4))
    repeated, _ = packed_attention(
        module, query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), None, row_lengths=(5, 4)
    )
    torch.testing.assert_close(grouped, repeated)
