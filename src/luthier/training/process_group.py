"""The ranks of a run: the processes that train one model together, and their collective operations.

    one process      ProcessGroup              every collective is the identity
    under torchrun   DistributedProcessGroup   values through gloo; gradients through shared memory (CPU) or NCCL (GPU)

Every collective on values also carries whether a stop was requested, so that all ranks stop after the same step. A
collective that waits longer than the timeout for another rank fails, so a hanging rank ends the run. Work of unbounded
duration (tokenizing, reading a model) is awaited outside of collectives, by `wait_for`.

This module depends on processes and tensors, not on models, rows or files.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby, islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from luthier.errors import SettingError
from luthier.training.barrier import accept_ranks, connect, listen
from luthier.training.shared_memory_reduce import SharedMemoryReducer, allocate

Item = TypeVar("Item")
Result = TypeVar("Result")
TIMEOUT = "LUTHIER_RANK_TIMEOUT"
DEFAULT_TIMEOUT = 1800.0
BUCKET_BYTES = 64 * 1024**2
STOPPING = "\nstopping; the run can be resumed (interrupt again to stop at once)"  # printed at the first Ctrl-C
_POLL_SECONDS = 0.05
_SOCKET = "socket"
_log = logging.getLogger(__name__)


class ProcessGroup:
    """A single process. `poll_stop` returns whether a stop was requested."""

    rank, world_size = 0, 1

    def __init__(self) -> None:
        self.poll_stop: Callable[[], bool] = lambda: False

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    @property
    def should_stop(self) -> bool:
        """Whether the run should stop; as of the last collective, the same on every rank."""
        return self.poll_stop()

    def local_device(self, device: torch.device) -> torch.device:
        """This rank's own device of the kind of `device`."""
        return device

    def all_reduce_values(self, *values: float) -> tuple[float, ...]:
        """The sum of each value over the ranks, in double precision."""
        return values

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""

    def all_gather(self, value: Item) -> list[Item]:
        """The value of every rank, in rank order."""
        return [value]

    def broadcast(self, value: Item) -> Item:
        """Rank 0's value."""
        return self.all_gather(value)[0]

    def signal(self, event: str) -> None:
        """Release the ranks that `wait_for` this event."""

    def wait_for(self, event: str) -> None:
        """Wait without a timeout until a rank has signalled this event."""

    def run_sequentially(self, name: str, function: Callable[[], Result]) -> Result:
        """Call `function` on one rank after the other, in rank order, without a timeout."""
        if self.rank:
            self.wait_for(f"{name} {self.rank - 1}")
        result = function()
        self.signal(f"{name} {self.rank}")
        return result

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's items: every `world_size`-th."""
        return items[self.rank :: self.world_size]

    def largest_shard(self, count: int) -> int:
        """The number of items in the largest shard of `count` items."""
        return math.ceil(count / self.world_size)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to the items, sharded over the ranks; every rank gets all results, in order.

        All ranks call `function` equally often, because it may contain collectives: when items run out, the last one
        is repeated.
        """
        remaining = iter(items)
        while chunk := list(islice(remaining, self.world_size)):
            yield from self.all_gather(function(chunk[min(self.rank, len(chunk) - 1)]))[: len(chunk)]


class DistributedProcessGroup(ProcessGroup):
    """One of several ranks on this machine, connected by `torch.distributed`; `store` is its key-value store."""

    def __init__(self, rank: int, world_size: int, store: Any) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size
        self._store = store
        self._should_stop = False
        self._reducer: SharedMemoryReducer | None = None
        self._has_shared_memory: bool | None = None  # determined at the first all_reduce

    @property
    def should_stop(self) -> bool:
        return self._should_stop

    def local_device(self, device: torch.device) -> torch.device:
        if device.type != "cuda":
            return device
        torch.cuda.set_device(self.rank)
        return torch.device("cuda", self.rank)

    def all_reduce_values(self, *values: float) -> tuple[float, ...]:
        sums_tensor = torch.tensor([*values, float(self.poll_stop())], dtype=torch.float64)
        dist.all_reduce(sums_tensor)
        *sums, stops = sums_tensor.tolist()
        self._should_stop = self._should_stop or stops > 0
        return tuple(sums)

    def all_gather(self, value: Item) -> list[Item]:
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, (value, self.poll_stop()))
        self._should_stop = self._should_stop or any(stop for _, stop in gathered)
        return [rank_value for rank_value, _ in gathered]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        for _, same_dtype in groupby(tensors, key=lambda tensor: tensor.dtype):
            group = list(same_dtype)
            reducer = self._shared_memory_reducer() if group[0].device.type == "cpu" else None
            if reducer is None:
                _all_reduce_in_buckets(group)
                continue
            contiguous = [tensor.contiguous() for tensor in group]  # most are already; which ones may differ by rank
            reducer.all_reduce(contiguous)
            for tensor, sums in zip(group, contiguous, strict=True):
                if sums is not tensor:
                    tensor.copy_(sums)

    def _shared_memory_reducer(self) -> SharedMemoryReducer | None:
        """The reducer over this machine's shared memory; None if it is full, then gloo sums instead."""
        if self._has_shared_memory is None:
            self._connect_shared_memory()
        return self._reducer

    def _connect_shared_memory(self) -> None:
        folder = allocate(self.world_size) if self.is_main else None
        listener = listen(folder / _SOCKET) if folder else None
        folder = self.all_gather(folder)[0]
        self._has_shared_memory = folder is not None
        if folder is None:
            _log.info("no shared memory for %d ranks: gradients are summed through gloo", self.world_size)
            return
        seconds = timeout()
        barrier = accept_ranks(listener, self.world_size, seconds) if listener else connect(folder / _SOCKET, seconds)
        self._reducer = SharedMemoryReducer(folder, self.rank, self.world_size, barrier.wait)
        barrier.wait()
        if self.is_main:
            shutil.rmtree(folder)

    def signal(self, event: str) -> None:
        self._store.set(_key(event), "1")

    def wait_for(self, event: str) -> None:
        while not self._store.check([_key(event)]):
            time.sleep(_POLL_SECONDS)


def _key(event: str) -> str:
    """The store's key of an event of this attempt: a torchrun that restarts the ranks may keep its store."""
    return f"luthier/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{event}"


def _all_reduce_in_buckets(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype by their sums over the ranks, through NCCL or gloo."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        sums = flat.split([tensor.numel() for tensor in bucket])
        for tensor, tensor_sum in zip(bucket, sums, strict=True):
            tensor.copy_(tensor_sum.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors into buckets of BUCKET_BYTES: large enough to hide latency, small enough to bound memory."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def is_under_torchrun() -> bool:
    """Whether torchrun (or a similar launcher) started this process as one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def timeout() -> float:
    """Seconds that a collective waits for another rank."""
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise SettingError(f"{TIMEOUT}={text}: expected a number of seconds above 0")
    return seconds


@contextmanager
def init_process_group() -> Iterator[ProcessGroup]:
    """The process group of the ranks that torchrun started; without torchrun, a single process."""
    if not is_under_torchrun():
        yield ProcessGroup()
        return
    if os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]) != os.environ["WORLD_SIZE"]:
        raise SettingError("ranks on several machines are not supported; start all on one (torchrun --standalone)")
    store, rank, world_size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    limit = timedelta(seconds=timeout())
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    yield DistributedProcessGroup(rank, world_size, store)
    dist.destroy_process_group()
