"""What the machine can do: the rate of a large matrix product, and of the kind that training is made of.

On a CPU it is counted for each second of the processor, so that what else runs there takes nothing off it; on a GPU,
on the clock.
"""

from __future__ import annotations

import time

import torch

SIZES = ((2048, 2048, 2048), (2048, 576, 1536), (2048, 1536, 576))
GPU_SIZES = ((8192, 8192, 8192), (8192, 4096, 14336))


def peak(dtype: torch.dtype, repeats: int = 4) -> float:
    """The best rate (multiply-adds counted as two) over a few sizes, in operations a (CPU-)second."""
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    best = 0.0
    for lines, inner, columns in GPU_SIZES if cuda else SIZES:
        device = torch.device("cuda" if cuda else "cpu")
        x, weight = torch.randn(lines, inner, device=device), torch.randn(columns, inner, device=device)
        x, weight = x.to(dtype), weight.to(dtype)
        for _ in range(repeats):
            started = clock()
            torch.nn.functional.linear(x, weight)
            if cuda:
                torch.cuda.synchronize()
            best = max(best, 2 * lines * inner * columns / (clock() - started))
    return best


def operations(body: int, head: int, lora: bool, tokens: int, completion_tokens: int) -> float:
    """Operations that a step needs: 6 for each weight and token, 4 where the weight is frozen; the head only where a
    label is. Attention, norms and the adapter itself are not counted, so a share of the peak made of it is a low one.
    """
    return float(4 if lora else 6) * (body * tokens + head * completion_tokens)
