"""Matrix products of the layers, by the faster of torch's two CPU libraries.

torch uses MKL for fp32 products, which on processors not made by Intel takes at least twice oneDNN's time, forward and
backward. The choice depends on the processor's vendor alone, so a resumed run on the same machine agrees bit for bit.
torch always uses oneDNN for bf16. oneDNN compiles a primitive for each new shape; if the system cannot allocate one,
MKL computes that product. The reference is `a @ b.T`
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
_NO_PRIMITIVE = "could not create a primitive"


def matmul_nt(a_MK: Tensor, b_NK: Tensor, addend_MN: Tensor | None = None, inplace: bool = False) -> Tensor:
    """a b' [+ addend] (M, N), without autograd; all of one type. With `inplace`, it may overwrite `addend_MN`."""
    if a_MK.dtype is torch.float32 and a_MK.device.type == "cpu" and a_MK.numel() and is_mkl_slow():
        try:
            return _onednn_matmul(a_MK, b_NK, addend_MN)
        except RuntimeError as error:
            if _NO_PRIMITIVE not in str(error):
                raise
    if addend_MN is None:
        return a_MK @ b_NK.t()
    # The same result; out of place, torch would first copy the addend.
    return addend_MN.addmm_(a_MK, b_NK.t()) if inplace else torch.addmm(addend_MN, a_MK, b_NK.t())


def bmm_fp32(left_BMK: Tensor, right_BKN: Tensor, scale: float) -> Tensor:
    """scale * left @ right in fp32 (B, M, N), without autograd, of batches of the same type."""
    is_bf16 = left_BMK.dtype is torch.bfloat16 and left_BMK.device.type == "cpu"
    left, right = left_BMK.float(), right_BKN.float()
    with _bf16_factors() if is_bf16 else nullcontext():
        return torch.baddbmm(left[:, :1, :1], left, right, beta=0, alpha=scale)


@contextmanager
def _bf16_factors() -> Iterator[None]:
    """Make oneDNN multiply fp32 numbers as bf16 and sum in fp32: exact for bf16 values, and 2.3 times MKL's speed.

    The setting is global to the process; the engine computes products in one thread.
    """
    before = _onednn.matmul.fp32_precision
    _onednn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        _onednn.matmul.fp32_precision = before


def _onednn_matmul(a_MK: Tensor, b_NK: Tensor, addend_MN: Tensor | None) -> Tensor:
    """As `matmul_nt`, for fp32 on a CPU; RuntimeError if oneDNN cannot allocate a primitive."""
    product: Tensor = (
        _ops._linear_pointwise(a_MK, b_NK, None, "none", [], "")
        if addend_MN is None
        else _ops._linear_pointwise.binary(a_MK, addend_MN, b_NK, None, "add")
    )
    return product


@functools.cache
def is_mkl_slow() -> bool:
    """Whether torch's MKL runs on a processor not made by Intel, and oneDNN is available."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_both and hasattr(_ops, "_linear_pointwise") and cpu_vendor() not in ("", "GenuineIntel")


def cpu_vendor() -> str:
    """The processor's vendor id (x86 under Linux); empty if unknown."""
    if not _CPUINFO.exists():
        return ""
    lines = (line.partition(":") for line in _CPUINFO.read_text("utf-8", "replace").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == "vendor_id"), "")
