"""The GPU's kernel is taken only where it was tried; without a GPU its call is checked by shapes alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from luthier.layers import varlen_attention as under_test
from luthier.layers.row_attention import AttentionSpec, row_attention
from luthier.layers.varlen_attention import (
    attend_rows,
    describe_attention,
    kernel_unavailable_reason,
    max_relative_error,
    varlen_attention,
)

CPU, HEADS = torch.device("cpu"), (4, 2, 16)


def parts(rows: AttentionSpec, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sizes = (rows.lengths, rows.source_lengths or rows.lengths, rows.source_lengths or rows.lengths)
    query, key, value = (
        torch.randn(sum(lengths), heads, 16, dtype=dtype) for lengths, heads in zip(sizes, (4, 2, 2), strict=True)
    )
    return query, key, value


@pytest.mark.parametrize(
    "rows",
    [
        AttentionSpec(lengths=(3, 9), scale=0.25),
        AttentionSpec(lengths=(3, 9), scale=0.25, window=4),
        AttentionSpec(lengths=(3, 9), scale=0.25, causal=False, source_lengths=(7, 2)),
    ],
)
def test_torch_takes_the_call_and_gives_the_shapes(rows: AttentionSpec) -> None:
    query, key, value = (part.to("meta", torch.bfloat16).requires_grad_() for part in parts(rows))
    attended = varlen_attention(query, key, value, rows)
    attended.sum().backward()
    assert attended.shape == query.shape
    assert attended.dtype is torch.bfloat16
    for part in (query, key, value):
        assert part.grad is not None
        assert part.grad.shape == part.shape


def test_elsewhere_rows_are_attended_by_products() -> None:
    rows = AttentionSpec(lengths=(3, 9, 1), scale=0.25)
    found = attend_rows(*parts(rows), rows)
    assert torch.equal(found, row_attention(*parts(rows), rows))
    assert kernel_unavailable_reason(CPU, torch.bfloat16, HEADS) == "none for cpu"
    assert kernel_unavailable_reason(torch.device("cuda"), torch.float32, HEADS) == "none for torch.float32"


def test_the_user_is_told_which_way_is_taken_on_a_gpu() -> None:
    assert describe_attention(CPU, torch.bfloat16, HEADS) == ""
    said = describe_attention(torch.device("cuda"), torch.float32, HEADS)
    assert said == ", attention without torch's varlen kernel (none for torch.float32)"


def test_a_kernel_that_is_not_there_is_a_reason_and_no_fault() -> None:
    with pytest.raises(NotImplementedError, match="flash_attention"):
        max_relative_error(CPU, torch.bfloat16, HEADS)


def test_a_kernel_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_all_rows_together(query: Tensor, key: Tensor, value: Tensor, rows: AttentionSpec) -> Tensor:
        return row_attention(
            query, key, value, AttentionSpec(lengths=(sum(rows.lengths),), scale=rows.scale, window=rows.window)
        )

    monkeypatch.setattr(under_test, "varlen_attention", row_attention)
    assert max_relative_error(CPU, torch.float32, HEADS) == 0
    monkeypatch.setattr(under_test, "varlen_attention", of_all_rows_together)
    found = max_relative_error(CPU, torch.float32, HEADS)
    assert found > under_test.TOLERANCE
    assert math.isfinite(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_of_this_card_agrees() -> None:
    assert max_relative_error(torch.device("cuda"), torch.bfloat16, (8, 2, 64)) <= under_test.TOLERANCE
