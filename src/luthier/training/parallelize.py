"""One model on several ranks: replicated on each (data parallel), or sharded over them (FSDP2).

    data parallel   every rank holds the model; gradients are all-reduced once per step
    sharded         every rank holds 1/N of each tensor (Zhao et al. 2023, arXiv:2304.11277). A layer is all-gathered
                    just before it computes and freed after; its gradient is reduce-scattered in the backward pass.
                    Parameters outside the layers (embeddings, last norm, head; often tied) are one more unit

This module depends on models and process groups, not on rows, optimizers or checkpoints.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from luthier.layers.batch import Batch
from luthier.training.config import TrainingSettings
from luthier.training.process_group import ProcessGroup
from luthier.training.tensor_file import full_tensor, local_tensor
from luthier.weights.model import Model, TokenScores

Item = TypeVar("Item")
Result = TypeVar("Result")


class DataParallelModel(Model):
    """A model that several ranks run together, each holding a full copy."""

    def __init__(self, model: Model, group: ProcessGroup, device: torch.device) -> None:
        super().__init__(model.network, model.dtype, device)
        self.group = group

    @property
    def world_size(self) -> int:
        return self.group.world_size

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return self.group.map(work, items)


class ShardedModel(DataParallelModel):
    """A model sharded over the ranks: every rank must call it equally often.

    The parameters in `replicated` are left unsharded on every rank.
    """

    def __init__(self, model: Model, group: ProcessGroup, device: torch.device, replicated: set[nn.Parameter]) -> None:
        super().__init__(model, group, device)
        if device.type == "cpu":
            _return_freed_memory()
        mesh = init_device_mesh(device.type, (group.world_size,))
        root = _RootModule(self.network)
        for module in (*fsdp_units(self.network), root):
            fully_shard(module, mesh=mesh, ignored_params=replicated)
        self._root: Any = root
        sharded: list[Any] = [module for module in root.modules() if isinstance(module, FSDPModule)]
        for unit in sharded:
            unit.set_gradient_divide_factor(1.0)  # the step has already weighted each row
            unit.set_force_sum_reduction_for_comms(True)  # gloo supports no other reduction
            if hasattr(unit, "set_reduce_scatter_unused_params"):  # torch 2.13: an expert that only one rank used
                unit.set_reduce_scatter_unused_params(True)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        with self._reshard_after():
            yield from super().map(lambda item: self._run_unsharded(work, item), items)

    def loss(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        return self._run_unsharded(super().loss, batch, smoothing)

    def scores(self, batch: Batch) -> TokenScores:
        with self._reshard_after():
            return self._run_unsharded(super().scores, batch)

    @torch.no_grad()
    def round_shards(self) -> None:
        """Round trained weights to the dtype they will be stored in (`weights.artifact.round_weights`).

        The shards keep their own dtype, which FSDP's buffers have.
        """
        for parameter in self.trainable_parameters().values() if not self.has_adapter else ():
            local_tensor(parameter).copy_(local_tensor(parameter).to(self.dtype))

    def gather_trained_weights(self) -> None:
        """Gather the trained weights on rank 0's CPU, in the compute dtype where all weights are trained.

        Every rank calls this; no rank can compute with the model afterwards.
        """
        dtype = torch.float32 if self.has_adapter else self.dtype
        gathered: dict[int, nn.Parameter] = {}  # by identity: tied weights stay tied
        for module in self.network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if isinstance(parameter, DTensor) and parameter.requires_grad:
                    if id(parameter) not in gathered:
                        tensor = full_tensor(parameter.detach())
                        empty = torch.empty(0, dtype=dtype)
                        full = tensor.to("cpu", dtype) if self.group.is_main else empty
                        gathered[id(parameter)] = nn.Parameter(full)
                    setattr(module, name, gathered[id(parameter)])

    @contextmanager
    def _reshard_after(self) -> Iterator[None]:
        """Free the unsharded weights at the end, since without a backward pass nothing else does."""
        is_nested = self._root.is_running
        try:
            yield
        finally:
            if not is_nested:
                self._root.reshard()

    def _run_unsharded(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call `function` while the weights outside of the layers are unsharded."""
        if self._root.is_running:
            return function(*arguments)
        result: Result = self._root(function, *arguments)
        return result


def _return_freed_memory() -> None:
    """Let the C library return large blocks to the system as soon as they are freed.

    glibc caches blocks of up to 32 MB. Layers are unsharded and freed all the time, and the cache grew larger than the
    model (85 million weights on two ranks: a peak of 2.7 GB, and 1.3 GB with this setting).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 1024**2


class _RootModule(nn.Module):
    """The whole network as one module whose forward calls any function, so that FSDP's hooks run around it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.is_running = False

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.is_running = True
        try:
            return function(*arguments)
        finally:
            self.is_running = False


def parallelize(model: Model, group: ProcessGroup, device: torch.device, settings: TrainingSettings) -> Model:
    """The model as the ranks of `group` run it, each on its own `device`; unchanged on one rank."""
    if group.world_size == 1:
        return model
    if not settings.run.fsdp:
        return DataParallelModel(model, group, device)
    frozen = {parameter for parameter in model.network.parameters() if not parameter.requires_grad}
    return ShardedModel(model, group, device, frozen if settings.method.bits == 8 else set())


def sharding_warnings(settings: TrainingSettings, world_size: int) -> list[str]:
    """Warn of what enable_fsdp does not shard with `world_size` ranks, and of settings that it makes ineffective."""
    if not settings.run.fsdp:
        return []
    if world_size == 1:
        return ["enable_fsdp=True has no effect on one rank: there is nothing to shard (set --ranks N)"]
    warnings = []
    if settings.method.bits == 8:
        warnings.append("8-bit base weights cannot be sharded: every rank holds all of them; the adapter is sharded")
    if settings.run.auto_find_batch_size:
        warnings.append(
            "auto_find_batch_size has no effect with enable_fsdp on several ranks: no rank can split its rows alone"
        )
    return warnings


def fsdp_units(network: nn.Module) -> list[nn.Module]:
    """The modules that are sharded as one unit each, inner ones first: the blocks, and embeddings inside of them.

    T5's first block holds the position bias of all blocks, which is needed before that block computes.
    """
    blocks = transformer_blocks(network)
    inner = [module for block in blocks for module in block.modules() if isinstance(module, nn.Embedding)]
    return [*inner, *blocks]


def transformer_blocks(network: nn.Module) -> list[nn.Module]:
    """The transformer's blocks: the elements of the outermost module lists."""
    blocks: list[nn.Module] = []
    for module in network.children():
        blocks += list(module) if isinstance(module, nn.ModuleList) else transformer_blocks(module)
    return blocks


def without_labels(batch: Batch) -> Batch:
    """The same batch without labels: for a rank that must join the others' collectives without contributing."""
    none = batch.labels_N[:0]
    return replace(batch, positions_N=none, labels_N=none, row_of_label_N=none)
