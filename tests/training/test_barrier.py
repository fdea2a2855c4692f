"""No rank passes a barrier before all have reached it; one that hangs or ends is told apart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from luthier.training.barrier import Barrier, accept_ranks, connect, listen


def meet(folder: Path, size: int, seconds: float, work: Callable[[int, Barrier], object]) -> list[object]:
    """`work` of each rank, in a thread of its own, with its end of the barrier."""
    door = listen(folder / "door")

    def one(rank: int) -> object:
        barrier = connect(folder / "door", seconds) if rank else accept_ranks(door, size, seconds)
        try:
            return work(rank, barrier)
        finally:
            for other in barrier._peers:  # as the end of a process does
                other.close()

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(one, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_all_have_come_before_any_goes_on(tmp_path: Path, size: int) -> None:
    rounds = 200
    came = [0] * size

    def work(rank: int, barrier: Barrier) -> bool:
        whole = True
        for number in range(1, rounds + 1):
            came[rank] = number
            barrier.wait()
            whole &= min(came) >= number
        return whole

    assert meet(tmp_path, size, 30, work) == [True] * size
    assert came == [rounds] * size


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_does_not_come_is_waited_for_so_long(tmp_path: Path, late: int) -> None:
    over = threading.Event()

    def work(rank: int, barrier: Barrier) -> str:
        if rank == late:
            over.wait(30)
            return "late"
        try:
            barrier.wait()
        except TimeoutError:
            return "timed out"
        finally:
            over.set()
        return "met"

    assert sorted(map(str, meet(tmp_path, 2, 0.2, work))) == ["late", "timed out"]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_has_ended_is_not_waited_for(tmp_path: Path, gone: int) -> None:
    def work(rank: int, barrier: Barrier) -> str:
        if rank == gone:
            return "gone"
        with pytest.raises(ConnectionError):
            barrier.wait()
        return "told"

    assert sorted(map(str, meet(tmp_path, 2, 30, work))) == ["gone", "told"]
