"""The ranks of a run: the processes that train one model together, and what they tell each other.

    one process      ProcessGroup   agrees with itself
    under torchrun   DistributedProcessGroup   words through gloo, gradients through shared memory (CPU) or NCCL (GPU)

Every exchange also carries whether the run was asked to stop, so that all ranks stop after the same step. An exchange
that waits longer than the limit for another rank fails: a rank that hangs ends the run. What may take any time (rows
being tokenized, a model being read) is waited for outside of exchanges, by `until`.

It knows processes and tensors, nothing of models, rows or files.
"""

from __future__ import annotations

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
from luthier.training.barrier import await_others, join, listen
from luthier.training.shared_memory_reduce import SharedMemoryReducer, reserve

Item = TypeVar("Item")
Result = TypeVar("Result")
TIMEOUT = "LUTHIER_RANK_TIMEOUT"
DEFAULT_TIMEOUT = 1800.0
BUCKET_BYTES = 64 * 1024**2
_POLL_SECONDS = 0.05
_DOOR = "door"


class ProcessGroup:
    """One process on its own. `ask` says whether the run was asked to stop."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self.ask: Callable[[], bool] = lambda: False

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that speaks and writes."""
        return self.rank == 0

    @property
    def stopping(self) -> bool:
        """Whether the run is to stop: the same answer on every rank since the last exchange."""
        return self.ask()

    def device(self, asked: torch.device) -> torch.device:
        """This rank's own device."""
        return asked

    def total(self, *values: float) -> tuple[float, ...]:
        """The sums of each value over the ranks, in double precision."""
        return values

    def gather(self, value: Item) -> list[Item]:
        """The value of every rank, in their order."""
        return [value]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""

    def reached(self, name: str) -> None:
        """Let the ranks that wait `until` this go on."""

    def until(self, name: str) -> None:
        """Wait, for any time, until a rank has `reached` this."""

    def in_turn(self, name: str, work: Callable[[], Result]) -> Result:
        """Do `work` when the rank before this one has done it, however long that takes."""
        if self.rank:
            self.until(f"{name} {self.rank - 1}")
        result = work()
        self.reached(f"{name} {self.rank}")
        return result

    def deal(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share of `items`: every `size`-th."""
        return items[self.rank :: self.size]

    def rounds(self, count: int) -> int:
        """The most items that any rank gets of `count`."""
        return math.ceil(count / self.size)

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work` done on each item, the items dealt over the ranks; every rank gets all results, in order.

        All ranks do `work` equally often, for it may be an exchange itself: where items run out, the last is repeated.
        """
        waiting = iter(items)
        while group := list(islice(waiting, self.size)):
            yield from self.gather(work(group[min(self.rank, len(group) - 1)]))[: len(group)]

    def first(self, value: Item) -> Item:
        """Rank 0's value."""
        return self.gather(value)[0]


class DistributedProcessGroup(ProcessGroup):
    """One of several ranks on this machine, connected by `torch.distributed`; `store` lies beside the exchanges."""

    def __init__(self, rank: int, size: int, store: Any) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self._store = store
        self._stopping = False
        self._shared: SharedMemoryReducer | None = None
        self._shares: bool | None = None  # whether there is memory to share; found out at the first gradient

    @property
    def stopping(self) -> bool:
        return self._stopping

    def device(self, asked: torch.device) -> torch.device:
        if asked.type != "cuda":
            return asked
        torch.cuda.set_device(self.rank)
        return torch.device("cuda", self.rank)

    def total(self, *values: float) -> tuple[float, ...]:
        sums = torch.tensor([*values, float(self.ask())], dtype=torch.float64)
        dist.all_reduce(sums)
        *found, stops = sums.tolist()
        self._stopping = self._stopping or stops > 0
        return tuple(found)

    def gather(self, value: Item) -> list[Item]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, (value, self.ask()))
        self._stopping = self._stopping or any(stop for _, stop in found)
        return [each for each, _ in found]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        for _, same in groupby(tensors, key=lambda tensor: tensor.dtype):
            group = list(same)
            shared = self._memory() if group[0].device.type == "cpu" else None
            if shared is None:
                _exchange(group)
                continue
            laid = [tensor.contiguous() for tensor in group]  # most are; it may not be the same ones on every rank
            shared.add_up(laid)
            for tensor, sums in zip(group, laid, strict=True):
                if sums is not tensor:
                    tensor.copy_(sums)

    def _memory(self) -> SharedMemoryReducer | None:
        """Memory that the ranks of this machine share; None without room for it, where gloo carries the sums."""
        if self._shares is None:
            self._share()
        return self._shared

    def _share(self) -> None:
        folder = reserve(self.size) if self.leads else None
        door = listen(folder / _DOOR) if folder else None
        folder = self.gather(folder)[0]
        self._shares = folder is not None
        if folder is None:
            return
        limit = timeout()
        barrier = await_others(door, self.size, limit) if door else join(folder / _DOOR, limit)
        self._shared = SharedMemoryReducer(folder, self.rank, self.size, barrier.wait)
        barrier.wait()
        if self.leads:
            shutil.rmtree(folder)

    def reached(self, name: str) -> None:
        self._store.set(_key(name), "1")

    def until(self, name: str) -> None:
        while not self._store.check([_key(name)]):
            time.sleep(_POLL_SECONDS)


def _key(name: str) -> str:
    """Of one attempt: a torchrun that starts the ranks again may keep its store."""
    return f"luthier/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _exchange(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their sums over the ranks, through NCCL or gloo."""
    for bucket in _buckets(tensors):
        joined = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(joined)
        pieces = joined.split([tensor.numel() for tensor in bucket])
        for tensor, piece in zip(bucket, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in portions of BUCKET_BYTES, so that an exchange is worth its delay and memory is bounded."""
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


def under_torchrun() -> bool:
    """Whether torchrun (or a launcher like it) started this process as one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def timeout() -> float:
    """Seconds that an exchange waits for another rank."""
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise SettingError(f"{TIMEOUT}={text}: expected a number of seconds above 0")
    return seconds


@contextmanager
def joined() -> Iterator[ProcessGroup]:
    """This process's place among the ranks that torchrun started; without torchrun, it is the only one."""
    if not under_torchrun():
        yield ProcessGroup()
        return
    if os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]) != os.environ["WORLD_SIZE"]:
        raise SettingError("the ranks are on several machines; expected all of them on one (torchrun --standalone)")
    store, rank, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    limit = timedelta(seconds=timeout())
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    yield DistributedProcessGroup(rank, size, store)
    dist.destroy_process_group()
