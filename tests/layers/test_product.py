"""A product is the plain one, whichever library computes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from luthier.layers import product
from luthier.layers.product import bmm_fp32, cpu_vendor, matmul_nt

SIZES = [(1, 1, 1), (7, 64, 33), (130, 48, 256)]


@pytest.fixture(params=[False, True], ids=["torch's", "oneDNN's"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not (torch.backends.mkldnn.is_available() and hasattr(product._ops, "_linear_pointwise")):
        pytest.skip("oneDNN is not part of this torch")
    monkeypatch.setattr(product, "is_mkl_slow", lambda: request.param)
    return bool(request.param)


def layouts(tensor: Tensor) -> list[Tensor]:
    """The same matrix by rows and by columns."""
    return [tensor, tensor.t().contiguous().t()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_plain_product(library: bool, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inner, columns = size
    torch.manual_seed(0)
    a, b, onto = torch.randn(rows, inner), torch.randn(columns, inner), torch.randn(rows, columns)
    a, b, onto = a.to(dtype), b.to(dtype), onto.to(dtype)
    rtol, atol = (1e-5, 1e-4) if dtype is torch.float32 else (2e-2, 2e-1)
    before = onto.clone()
    for left in layouts(a):
        for right in layouts(b):
            torch.testing.assert_close(matmul_nt(left, right), a @ b.t(), rtol=rtol, atol=atol)
            torch.testing.assert_close(matmul_nt(left, right, onto), before + a @ b.t(), rtol=rtol, atol=atol)
            assert torch.equal(onto, before)
            assert torch.equal(matmul_nt(left, right, onto.clone(), inplace=True), matmul_nt(left, right, onto))


def test_of_no_rows_there_is_nothing(library: bool) -> None:
    assert matmul_nt(torch.zeros(0, 5), torch.ones(3, 5)).shape == (0, 3)


def test_the_same_product_twice_is_bit_for_bit_the_same(library: bool) -> None:
    a, b = torch.randn(130, 48), torch.randn(256, 48)
    assert torch.equal(matmul_nt(a, b), matmul_nt(a, b))


@pytest.mark.parametrize(
    ("text", "found"), [("processor : 0\nvendor_id\t: AuthenticAMD\n", "AuthenticAMD"), ("CPU part : 0xd0c\n", "")]
)
def test_the_maker_is_read_from_the_system(
    text: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "_CPUINFO", tmp_path / "cpuinfo")
    assert cpu_vendor() == ""
    (tmp_path / "cpuinfo").write_text(text, "utf-8")
    assert cpu_vendor() == found


def test_without_room_for_another_program_the_other_library_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> Tensor:
        raise RuntimeError(words)

    monkeypatch.setattr(product, "is_mkl_slow", lambda: True)
    monkeypatch.setattr(product, "_onednn_matmul", refuses)
    a, b, onto = torch.randn(7, 64), torch.randn(33, 64), torch.randn(7, 33)
    words = "could not create a primitive"
    assert torch.equal(matmul_nt(a, b), a @ b.t())
    assert torch.equal(matmul_nt(a, b, onto), torch.addmm(onto, a, b.t()))
    words = "mkldnn_linear: input and weight dtype need to be same"
    with pytest.raises(RuntimeError, match="dtype"):
        matmul_nt(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 384, 64, 190), (2, 7, 33, 5)])
def test_a_product_in_fp32_is_rounded_as_fp32_is(dtype: torch.dtype, size: tuple[int, int, int, int]) -> None:
    batch, rows, inner, columns = size
    torch.manual_seed(0)
    left, right = torch.randn(batch, rows, inner).to(dtype), torch.randn(batch, columns, inner).to(dtype)
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    found = bmm_fp32(left, right.transpose(1, 2), 0.125)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), 0.125 * left.double() @ right.double().mT, rtol=1e-5, atol=1e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
