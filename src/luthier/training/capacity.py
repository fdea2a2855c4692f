"""The disk space and memory that a run needs, checked before it starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from luthier.errors import CapacityError
from luthier.training.tensor_file import local_tensor
from luthier.weights.model import Model
from luthier.weights.quantize import quantization_scale_bytes

LOG_BYTES = 64 * 1024**2  # metrics, ledger, scores and report


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """Bytes. `memory` is one rank's weights, gradients and AdamW moments, without activations."""

    checkpoints: int
    artifact: int
    memory: int

    @property
    def disk(self) -> int:
        return self.checkpoints + self.artifact + LOG_BYTES


def estimate_resources(model: Model, checkpoints_kept: int) -> ResourceEstimate:
    """Compute what a run needs. A checkpoint holds the trained weights and two moments of the same dtype.

    The best checkpoint and the one being written are on disk as well.
    """
    trained = model.trainable_parameters().values()
    all_weights = sum(_bytes(local_tensor(parameter)) for parameter in model.network.parameters())
    trained_here = sum(_bytes(local_tensor(parameter)) for parameter in trained)
    all_weights += quantization_scale_bytes(model.network)
    checkpoint = 3 * sum(_bytes(parameter) for parameter in trained)
    stored_weights = sum(parameter.numel() for parameter in trained) * (4 if model.dtype is torch.float32 else 2)
    return ResourceEstimate(
        checkpoints=checkpoint * (checkpoints_kept + 2),
        artifact=2 * max(stored_weights, 1),  # the folder and its archive
        memory=all_weights + 3 * trained_here,
    )


def check_capacity(needed: ResourceEstimate, folder: Path, device: torch.device, ranks: int = 1) -> None:
    """CapacityError when the disk of `folder` or the memory of `device` is too small for the run.

    Ranks on the CPU share its memory; those on GPUs have one each.
    """
    free_disk = shutil.disk_usage(folder).free
    if needed.disk > free_disk:
        raise CapacityError(
            f"{folder}: the run needs {_size(needed.disk)} of disk (checkpoints {_size(needed.checkpoints)}, artifact "
            f"{_size(needed.artifact)}), {_size(free_disk)} are free; free some, lower save_total_limit, or choose "
            "another --out"
        )
    on_gpu = device.type == "cuda"
    free_memory = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    in_use = 0 if on_gpu else psutil.Process().memory_info().rss * ranks  # it already holds the weights
    memory = needed.memory * (1 if on_gpu else ranks)
    if memory > free_memory + in_use:
        raise CapacityError(
            f"the run needs {_size(memory)} of memory on {device} before activations, "
            f"{_size(free_memory + in_use)} are free; use peft_type=lora, bf16=True (for all weights "
            "with optim=adamw_bf16), a smaller model or another device"
        )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
