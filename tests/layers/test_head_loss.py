"""The chunked head and loss equal the plain cross-entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luthier.layers import head_loss as room
from luthier.layers.head_loss import head_loss, head_scores


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("positions", [1, 7, 50])
def test_loss_and_gradients_equal_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, positions: int, with_bias: bool
) -> None:
    monkeypatch.setattr(room, "CHUNK_ELEMENTS", 11 * 4)  # chunks of 4 positions, the last one partial
    torch.manual_seed(0)
    hidden = torch.randn(positions, 5, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    bias = torch.randn(11, requires_grad=True) if with_bias else None
    labels = torch.randint(0, 11, (positions,))
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]

    plain = F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum") * 0.5
    expected = torch.autograd.grad(plain, inputs)
    ours = head_loss(hidden, weight, bias, labels, torch.float32) * 0.5
    found = torch.autograd.grad(ours, inputs)

    torch.testing.assert_close(ours, plain)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(9, 4)
    head_loss(hidden, weight, None, torch.tensor([1, 2, 3]), torch.float32).backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_bf16_products_stay_close_to_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(64, 32), torch.randn(100, 32), torch.randint(0, 100, (64,))
    exact = head_loss(hidden, weight, None, labels, torch.float32)
    low = head_loss(hidden, weight, None, labels, torch.bfloat16)
    assert low.dtype is torch.float32
    assert low.item() != exact.item()
    assert low.item() == pytest.approx(exact.item(), rel=5e-3)


def test_scores_say_loss_and_hit_of_each_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_ELEMENTS", 6)
    hidden = torch.eye(3)
    weight = torch.tensor([[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]])
    losses, hits = head_scores(hidden, weight, None, torch.tensor([0, 1, 0]), torch.float32)
    assert hits.tolist() == [True, True, False]
    expected = F.cross_entropy(hidden @ weight.T, torch.tensor([0, 1, 0]), reduction="none")
    torch.testing.assert_close(losses, expected)


def test_no_positions_no_loss() -> None:
    none = torch.zeros(0, dtype=torch.long)
    losses, hits = head_scores(torch.zeros(0, 4), torch.randn(9, 4), None, none, torch.float32)
    assert losses.shape == hits.shape == (0,)
