"""Matrix products of the layers, by the faster of the two libraries that torch brings for a CPU.

torch hands fp32 products to MKL, which on processors that are not Intel's takes twice oneDNN's time and more, forward
and backward. Which of the two computes is decided by the processor's maker alone, so a run and its continuation on the
same machine agree bit for bit. bf16 products are oneDNN's anyway. oneDNN compiles a program for each new shape; where
the system leaves no room for one, MKL computes that product. The reference is `a @ b.T`
(tests/layers/test_product.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ops: Any = torch.ops.mkldnn
_onednn: Any = torch.backends.mkldnn
_CPUINFO = Path("/proc/cpuinfo")
_NO_ROOM_FOR_A_PROGRAM = "could not create a primitive"


def matmul_nt(a_MK: Tensor, b_NK: Tensor, addend_MN: Tensor | None = None, inplace: bool = False) -> Tensor:
    """a b' [+ onto] (M, N), without autograd; all of one type. A new tensor, unless `onto` may be `inplace`."""
    if a_MK.dtype is torch.float32 and a_MK.device.type == "cpu" and a_MK.numel() and is_mkl_slow():
        try:
            return _by_onednn(a_MK, b_NK, addend_MN)
        except RuntimeError as error:
            if _NO_ROOM_FOR_A_PROGRAM not in str(error):
                raise
    if addend_MN is None:
        return a_MK @ b_NK.t()
    # The same numbers; onto a new tensor, torch would first copy all of `onto` there.
    return addend_MN.addmm_(a_MK, b_NK.t()) if inplace else torch.addmm(addend_MN, a_MK, b_NK.t())


def bmm_fp32(left_BMK: Tensor, right_BKN: Tensor, scale: float) -> Tensor:
    """scale * left right in fp32 (B, M, N), without autograd, of batches of any one type."""
    exact = left_BMK.dtype is torch.bfloat16 and left_BMK.device.type == "cpu"
    left, right = left_BMK.float(), right_BKN.float()
    with _factors_are_bf16() if exact else nullcontext():
        return torch.baddbmm(left[:, :1, :1], left, right, beta=0, alpha=scale)


@contextmanager
def _factors_are_bf16() -> Iterator[None]:
    """Let oneDNN multiply fp32 numbers as bf16 and sum in fp32: exact for what was bf16, and 2.3 times MKL's speed.

    The switch is the whole process's; the engine's products are computed in one thread.
    """
    before = _onednn.matmul.fp32_precision
    _onednn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        _onednn.matmul.fp32_precision = before


def _by_onednn(a_MK: Tensor, b_NK: Tensor, addend_MN: Tensor | None) -> Tensor:
    """As `times`, of fp32 on a CPU. RuntimeError where it finds no room for the program it would compile."""
    found: Tensor = (
        _ops._linear_pointwise(a_MK, b_NK, None, "none", [], "")
        if addend_MN is None
        else _ops._linear_pointwise.binary(a_MK, addend_MN, b_NK, None, "add")
    )
    return found


@functools.cache
def is_mkl_slow() -> bool:
    """Whether torch's MKL runs on a processor of another maker, and oneDNN is there to stand in."""
    there = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return there and hasattr(_ops, "_linear_pointwise") and cpu_vendor() not in ("", "GenuineIntel")


def cpu_vendor() -> str:
    """The processor's maker as it names itself (x86 under Linux); empty where that cannot be told."""
    if not _CPUINFO.exists():
        return ""
    lines = (line.partition(":") for line in _CPUINFO.read_text("utf-8", "replace").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == "vendor_id"), "")
