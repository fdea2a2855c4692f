"""Sums of tensors over the ranks of one machine, through memory that they share.

    each rank    copies its numbers into its own part         ─┐
                 all are there                                 │  a piece of CHUNK_BYTES at a time, in two
                 adds up one slice of all parts, in order      │  rooms by turns: who is quick begins the next
                 all slices are there                          │  piece while another still reads this one
                 copies the sums back                         ─┘

Each number is read and written where it stands, once, and goes between the ranks through the processor's cache, where
gloo sends it through a socket. All ranks get the same bits. It knows tensors on a CPU and a way to wait for each other,
nothing of what is summed.

Shapes: P numbers of a piece, N of a stretch of one tensor.
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
"""The file in a reserved folder."""
_ROOMS = 2
_PLACE = Path("/dev/shm")  # noqa: S108 - memory, and the folder in it is its owner's alone


class SharedMemoryReducer:
    """The memory of `size` ranks in a reserved `folder`, of which this is `rank`.

    `wait` returns when all ranks have called it.
    """

    def __init__(self, folder: Path, rank: int, size: int, wait: Callable[[], None]) -> None:
        self.rank, self.size, self._wait = rank, size, wait
        with open(folder / MEMORY, "r+b") as file:
            self._memory = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)
        self._turn = 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace the numbers, on a CPU and of one type, by their sums over the ranks, in the ranks' order."""
        for piece in _pieces(tensors):
            self._add_up(piece)

    def _add_up(self, piece: Sequence[Tensor]) -> None:
        """Of the stretches (N,) of one piece."""
        self._turn = (self._turn + 1) % _ROOMS
        room = self._memory.view(_ROOMS, self.size, CHUNK_BYTES)[self._turn]
        sizes = [len(stretch_N) for stretch_N in piece]
        parts_P = [part.view(piece[0].dtype)[: sum(sizes)] for part in room]
        for own_N, stretch_N in zip(parts_P[self.rank].split(sizes), piece, strict=True):
            own_N.copy_(stretch_N)
        self._wait()
        first, *others = (part_P.tensor_split(self.size)[self.rank] for part_P in parts_P)
        for other in others:
            first += other
        self._wait()
        for sum_N, stretch_N in zip(parts_P[0].split(sizes), piece, strict=True):
            stretch_N.copy_(sum_N)


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Stretches of the tensors, in their order, in pieces of CHUNK_BYTES."""
    piece: list[Tensor] = []
    room = most = CHUNK_BYTES // tensors[0].element_size()
    for tensor in tensors:
        rest_N = tensor.view(-1)
        while len(rest_N):
            piece.append(rest_N[:room])
            room, rest_N = room - len(piece[-1]), rest_N[room:]
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def reserve(size: int) -> Path | None:
    """A folder of its owner's alone with memory for `size` ranks, all of it there; None where this machine has no room.

    Memory that is written beyond what the machine has would end the process (SIGBUS).
    """
    if not _PLACE.is_dir():
        return None
    try:
        folder = Path(tempfile.mkdtemp(prefix="luthier-", dir=_PLACE))
    except OSError:
        return None
    try:
        with open(folder / MEMORY, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, _ROOMS * size * CHUNK_BYTES)
    except OSError:
        shutil.rmtree(folder)
        return None
    return folder
