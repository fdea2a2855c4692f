"""One model on several ranks: each holds all of it, or its share of every tensor (FSDP2).

    data parallel   every rank holds the model; gradients are added up once a step
    sharded         every rank holds 1/N of each tensor (Zhao et al. 2023, arXiv:2304.11277). A layer is put together
                    just before it computes and let go after; its gradient is added up and dealt out on the way back.
                    What is not in a layer (embeddings, last norm, head: often one tied tensor) forms one more unit

It knows models and ranks, nothing of rows, optimizers or checkpoints.
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
from luthier.training.tensor_file import local, whole
from luthier.weights.model import Model, TokenScores

Item = TypeVar("Item")
Result = TypeVar("Result")


class DataParallelModel(Model):
    """A model that several ranks run together, each holding all of it."""

    def __init__(self, model: Model, ranks: ProcessGroup, device: torch.device) -> None:
        super().__init__(model.network, model.dtype, device)
        self.ranks = ranks

    @property
    def world_size(self) -> int:
        return self.ranks.size

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return self.ranks.each(work, items)


class ShardedModel(DataParallelModel):
    """A model of which every rank holds a share: every rank must compute with it equally often.

    Weights in `kept` are left as they are on every rank.
    """

    def __init__(self, model: Model, ranks: ProcessGroup, device: torch.device, kept: set[nn.Parameter]) -> None:
        super().__init__(model, ranks, device)
        if device.type == "cpu":
            _return_freed_memory()
        mesh = init_device_mesh(device.type, (ranks.size,))
        root = _Root(self.network)
        for module in (*units(self.network), root):
            fully_shard(module, mesh=mesh, ignored_params=kept)
        self._root: Any = root
        sharded: list[Any] = [module for module in root.modules() if isinstance(module, FSDPModule)]
        for unit in sharded:
            unit.set_gradient_divide_factor(1.0)  # the step has weighted each row already
            unit.set_force_sum_reduction_for_comms(True)  # gloo can do no other
            if hasattr(unit, "set_reduce_scatter_unused_params"):  # torch 2.13: an expert that one rank alone asked
                unit.set_reduce_scatter_unused_params(True)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        with self._scoring():
            yield from super().map(lambda item: self._inside(work, item), items)

    def loss(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        return self._inside(super().loss, batch, smoothing)

    def scores(self, batch: Batch) -> TokenScores:
        with self._scoring():
            return self._inside(super().scores, batch)

    @torch.no_grad()
    def round_shards(self) -> None:
        """Round trained weights to what they will be stored in (`weights.artifact.round_weights`).

        They are kept in the type they were sharded in, for FSDP's buffers are of that.
        """
        for parameter in self.trainable_parameters().values() if not self.has_adapter else ():
            local(parameter).copy_(local(parameter).to(self.dtype))

    def put_together(self) -> None:
        """Make the trained weights whole again, on rank 0's CPU and in the compute type where all weights train.

        Every rank calls this; no rank can compute with the model afterwards.
        """
        kept = torch.float32 if self.has_adapter else self.dtype
        made: dict[int, nn.Parameter] = {}  # by identity: tied weights stay tied
        for module in self.network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if isinstance(parameter, DTensor) and parameter.requires_grad:
                    if id(parameter) not in made:
                        tensor = whole(parameter.detach())
                        empty = torch.empty(0, dtype=kept)
                        made[id(parameter)] = nn.Parameter(tensor.to("cpu", kept) if self.ranks.leads else empty)
                    setattr(module, name, made[id(parameter)])

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """Let go in the end of what only a backward pass would let go."""
        nested = self._root.running
        try:
            yield
        finally:
            if not nested:
                self._root.reshard()

    def _inside(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do `work` while what is outside of the layers is put together."""
        if self._root.running:
            return work(*arguments)
        result: Result = self._root(work, *arguments)
        return result


def _return_freed_memory() -> None:
    """Let the C library give large blocks back as soon as they are free.

    glibc keeps blocks of up to 32 MB for later. A layer is put together and let go at every turn, and what is kept of
    that grew to more than the whole model (85 million weights on two ranks: a peak of 2.7 GB, of 1.3 GB so).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 1024**2


class _Root(nn.Module):
    """The whole network as one module whose forward is any piece of work, so that FSDP's hooks go round it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.running = False

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        self.running = True
        try:
            return work(*arguments)
        finally:
            self.running = False


def parallelize(model: Model, ranks: ProcessGroup, device: torch.device, settings: TrainingSettings) -> Model:
    """The model as `ranks` run it together, each on its own `device`; of one rank, as it is."""
    if ranks.size == 1:
        return model
    if not settings.run.fsdp:
        return DataParallelModel(model, ranks, device)
    frozen = {parameter for parameter in model.network.parameters() if not parameter.requires_grad}
    return ShardedModel(model, ranks, device, frozen if settings.method.bits == 8 else set())


def remarks(fsdp: bool, bits: int, size: int) -> list[str]:
    """What a user of enable_fsdp should know of how the model is laid over `size` ranks."""
    if fsdp and size == 1:
        return ["enable_fsdp=True has no effect on one rank: there is nothing to share out (--ranks N)"]
    if fsdp and bits == 8:
        return ["8-bit base weights cannot be sharded: every rank holds all of them, the adapter alone is sharded"]
    return []


def units(network: nn.Module) -> list[nn.Module]:
    """What is put together at a time, inner ones first: the layers, and embeddings inside of them.

    T5's first layer holds the position bias of them all, which is wanted before that layer computes.
    """
    blocks = layers(network)
    inner = [module for block in blocks for module in block.modules() if isinstance(module, nn.Embedding)]
    return [*inner, *blocks]


def layers(network: nn.Module) -> list[nn.Module]:
    """The transformer's blocks: the elements of the outermost lists of modules."""
    found: list[nn.Module] = []
    for module in network.children():
        found += list(module) if isinstance(module, nn.ModuleList) else layers(module)
    return found


def idle(batch: Batch) -> Batch:
    """The same batch without its labels: for a rank that must compute because others do, and adds nothing."""
    none = batch.labels_N[:0]
    return replace(batch, positions_N=none, labels_N=none, row_of_label_N=none)
