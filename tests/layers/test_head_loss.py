"""The chunked head and loss equal the plain cross-entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luthier.layers import head_loss as room
from luthier.layers.head_loss import OutputHead, head_loss, head_scores


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
    ours = head_loss(hidden, OutputHead(weight_VD=weight, bias_V=bias, dtype=torch.float32), labels) * 0.5
    found = torch.autograd.grad(ours, inputs)

    torch.testing.assert_close(ours, plain)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(9, 4)
    head_loss(
        hidden, OutputHead(weight_VD=weight, bias_V=None, dtype=torch.float32), torch.tensor([1, 2, 3])
    ).backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_bf16_products_stay_close_to_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(64, 32), torch.randn(100, 32), torch.randint(0, 100, (64,))
    exact = head_loss(hidden, OutputHead(weight_VD=weight, bias_V=None, dtype=torch.float32), labels)
    low = head_loss(hidden, OutputHead(weight_VD=weight, bias_V=None, dtype=torch.bfloat16), labels)
    assert low.dtype is torch.float32
    assert low.item() != exact.item()
    assert low.item() == pytest.approx(exact.item(), rel=5e-3)


def test_scores_say_loss_and_hit_of_each_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_ELEMENTS", 6)
    hidden = torch.eye(3)
    weight = torch.tensor([[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]])
    losses, hits = head_scores(
        hidden, OutputHead(weight_VD=weight, bias_V=None, dtype=torch.float32), torch.tensor([0, 1, 0])
    )
    assert hits.tolist() == [True, True, False]
    expected = F.cross_entropy(hidden @ weight.T, torch.tensor([0, 1, 0]), reduction="none")
    torch.testing.assert_close(losses, expected)


def test_no_positions_no_loss() -> None:
    none = torch.zeros(0, dtype=torch.long)
    losses, hits = head_scores(
        torch.zeros(0, 4), OutputHead(weight_VD=torch.randn(9, 4), bias_V=None, dtype=torch.float32), none
    )
    assert losses.shape == hits.shape == (0,)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_scaled_capped_and_smoothed_head_equals_autograd(
    monkeypatch: pytest.MonkeyPatch, scale: float, softcap: float | None, smoothing: float
) -> None:
    monkeypatch.setattr(room, "CHUNK_ELEMENTS", 11 * 4)
    torch.manual_seed(0)
    hidden = torch.randn(9, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    labels = torch.randint(0, 11, (9,))
    logits = F.linear(hidden * scale, weight)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    plain = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    expected = torch.autograd.grad(plain, [hidden, weight])
    head = OutputHead(weight_VD=weight, bias_V=None, dtype=torch.float32, scale=scale, softcap=softcap)
    ours = head_loss(hidden, head, labels, smoothing)
    found = torch.autograd.grad(ours, [hidden, weight])
    torch.testing.assert_close(ours, plain)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)
    losses, _ = head_scores(hidden, head, labels)
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none"))
