"""What a run will need of disk and memory, checked before it starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from luthier.errors import CapacityError
from luthier.training.tensor_file import local
from luthier.weights.model import Model
from luthier.weights.quantize import statistics_bytes

ROOM_FOR_LOGS = 64 * 1024**2  # metrics, ledger, scores and report


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """Bytes. `memory` is a rank's weights, gradients and AdamW's moments; activations come on top."""

    checkpoints: int
    artifact: int
    memory: int

    @property
    def disk(self) -> int:
        return self.checkpoints + self.artifact + ROOM_FOR_LOGS


def estimate_resources(model: Model, checkpoints_kept: int) -> ResourceEstimate:
    """Compute what a run needs. A checkpoint is the trainable weights and two moments of their type.

    One more checkpoint than is kept lies on disk while it is written, and the best one is kept besides.
    """
    trained = model.trainable_parameters().values()
    everything = sum(_bytes(local(parameter)) for parameter in model.network.parameters())
    held = sum(_bytes(local(parameter)) for parameter in trained)
    everything += statistics_bytes(model.network)
    one_checkpoint = 3 * sum(_bytes(parameter) for parameter in trained)
    weights = sum(parameter.numel() for parameter in trained) * (4 if model.dtype is torch.float32 else 2)
    artifact = 2 * max(weights, 1)  # the folder and its archive
    memory = everything + 3 * held
    return ResourceEstimate(one_checkpoint * (checkpoints_kept + 2), artifact, memory)


def check_capacity(need: ResourceEstimate, folder: Path, device: torch.device, ranks: int = 1) -> None:
    """CapacityError when the disk of `folder` or the memory of `device` cannot hold the run.

    ProcessGroup on the CPU share its memory; those on GPUs have one each.
    """
    free_disk = shutil.disk_usage(folder).free
    if need.disk > free_disk:
        raise CapacityError(
            f"{folder}: the run needs {_size(need.disk)} of disk (checkpoints {_size(need.checkpoints)}, artifact "
            f"{_size(need.artifact)}) and {_size(free_disk)} are free; free some, lower save_total_limit, or choose "
            "another --out"
        )
    free_memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    held = 0 if device.type == "cuda" else psutil.Process().memory_info().rss * ranks
    needed = need.memory * (1 if device.type == "cuda" else ranks)
    if needed > free_memory + held:
        raise CapacityError(
            f"the run needs {_size(needed)} of memory on {device} before activations, "
            f"{_size(free_memory + held)} are free; use peft_type=lora, bf16=True (for all weights "
            "with optim=adamw_bf16), a smaller model or another device"
        )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
