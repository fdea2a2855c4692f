"""The norm and its gradients are those of transformers' own modules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from luthier.layers import rms_norm as norm_module
from luthier.layers.rms_norm import RmsNorm, rms_norm_backward


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 24), st.booleans(), st.integers(1, 64))
def test_equals_the_plain_module(tokens: int, size: int, gemma: bool, piece: int) -> None:
    torch.manual_seed(tokens * size)
    plain = GemmaRMSNorm(size, 1e-5) if gemma else LlamaRMSNorm(size, 1e-5)
    plain.weight.data.normal_()
    x = torch.randn(tokens, size, requires_grad=True)
    grad = torch.randn(tokens, size)
    expected = plain(x)
    wanted = torch.autograd.grad(expected, (x, plain.weight), grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_module, "CHUNK_ELEMENTS", piece)
        found = RmsNorm(plain.weight, 1e-5, float(gemma))(x, torch.float32)
        got = torch.autograd.grad(found, (x, plain.weight), grad)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_another_gradient_is_added_and_left_as_it_is() -> None:
    torch.manual_seed(0)
    x, grad, onto = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 8)
    before = onto.clone()
    norm = RmsNorm(torch.randn(8), 1e-6)
    alone, none = rms_norm_backward(grad, x, norm, wants_weight=False)
    added, _ = rms_norm_backward(grad, x, norm, False, onto)
    assert none is None
    torch.testing.assert_close(added, alone + onto)
    assert torch.equal(onto, before)


def test_bf16_is_rounded_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 16).bfloat16()
    weight = torch.randn(16)
    exact = torch.nn.functional.rms_norm(x.double(), (16,), weight.double(), 1e-6)
    assert torch.equal(norm_module.rms_norm(x, RmsNorm(weight, 1e-6), torch.bfloat16), exact.float().bfloat16())
