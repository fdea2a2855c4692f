"""All-reduce of tensors over the ranks of one machine, through shared memory.

    each rank    copies its values into its own slot           ─┐
                 barrier                                         │  one chunk of CHUNK_BYTES at a time, in two
                 sums one slice of all slots, in rank order      │  buffers that alternate: a fast rank begins the
                 barrier                                         │  next chunk while others still read this one
                 copies the sums back                           ─┘

Each value is read and written in place, once, and is shared through the processor's cache, whereas gloo sends it
through a socket. All ranks get the same bits. This module depends on CPU tensors and a barrier only.

Shapes: P values of a chunk, N values of one tensor's part of a chunk.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

CHUNK_BYTES = 2 * 1024**2
MEMORY = "memory"
"""The file in an allocated folder."""
_BUFFERS = 2
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - memory, in a folder that only its owner can open


class SharedMemoryReducer:
    """One rank's view of the memory in an allocated `folder`; `barrier` returns when all ranks have called it."""

    def __init__(self, folder: Path, rank: int, world_size: int, barrier: Callable[[], None]) -> None:
        self.rank, self.world_size, self._barrier = rank, world_size, barrier
        with open(folder / MEMORY, "r+b") as file:
            self._memory = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)
        self._buffer = 0

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace the values of CPU tensors of one dtype by their sums over the ranks, added in rank order."""
        for chunk in _chunks(tensors):
            self._all_reduce_chunk(chunk)

    def _all_reduce_chunk(self, chunk: Sequence[Tensor]) -> None:
        self._buffer = (self._buffer + 1) % _BUFFERS
        buffer = self._memory.view(_BUFFERS, self.world_size, CHUNK_BYTES)[self._buffer]
        sizes = [len(part_N) for part_N in chunk]
        slots_P = [slot.view(chunk[0].dtype)[: sum(sizes)] for slot in buffer]
        for slot_N, part_N in zip(slots_P[self.rank].split(sizes), chunk, strict=True):
            slot_N.copy_(part_N)
        self._barrier()
        total, *others = (slot_P.tensor_split(self.world_size)[self.rank] for slot_P in slots_P)
        for other in others:
            total += other
        self._barrier()
        for sum_N, part_N in zip(slots_P[0].split(sizes), chunk, strict=True):
            part_N.copy_(sum_N)


def _chunks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Cut the flattened tensors, in order, into chunks of CHUNK_BYTES."""
    chunk: list[Tensor] = []
    free = capacity = CHUNK_BYTES // tensors[0].element_size()
    for tensor in tensors:
        remaining_N = tensor.view(-1)
        while len(remaining_N):
            chunk.append(remaining_N[:free])
            free, remaining_N = free - len(chunk[-1]), remaining_N[free:]
            if not free:
                yield chunk
                chunk, free = [], capacity
    if chunk:
        yield chunk


def allocate(world_size: int) -> Path | None:
    """Create a private folder with shared memory for `world_size` ranks; None if the machine has too little.

    All of it is allocated here: writing to memory that the machine does not have would kill the process (SIGBUS).
    """
    if not _SHARED_MEMORY.is_dir():
        return None
    try:
        folder = Path(tempfile.mkdtemp(prefix="luthier-", dir=_SHARED_MEMORY))
    except OSError:
        return None
    try:
        with open(folder / MEMORY, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, _BUFFERS * world_size * CHUNK_BYTES)
    except OSError:
        shutil.rmtree(folder)
        return None
    return folder
