"""Memory that does not suffice is known by its errors, and work goes on with fewer rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from luthier.errors import CapacityError
from luthier.weights.row_limit import RowLimit, is_out_of_memory, map_chunks, report_out_of_memory

ON_CPU = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError(ON_CPU), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_says_that_memory_did_not_suffice(error: BaseException, known: bool) -> None:
    assert is_out_of_memory(error) is known


def test_the_real_allocator_says_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(caught.value)


class Work:
    """Doubles numbers, up to `room` of them at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def __call__(self, rows: Sequence[int]) -> list[int]:
        self.tried.append(len(rows))
        if len(rows) > self.room:
            raise MemoryError
        return [2 * row for row in rows]


def test_what_does_not_fit_is_done_in_halves_once_and_in_order() -> None:
    said: list[str] = []
    limit, work = RowLimit(work="scoring", say=said.append), Work(3)
    assert [done for part in map_chunks(range(10), limit, work) for done in part] == list(range(0, 20, 2))
    assert work.tried == [10, 5, 3, 3, 3, 1]
    assert limit.rows == 3
    assert said == [
        "out of memory while scoring 10 rows at once: 5 at once from now on, with the same result",
        "out of memory while scoring 5 rows at once: 3 at once from now on, with the same result",
    ]
    list(map_chunks(range(4), limit, work))
    assert work.tried[6:] == [3, 1], "what was found is remembered"


def test_everything_at_once_where_it_fits() -> None:
    limit, work = RowLimit(work="scoring"), Work(100)
    assert list(map_chunks(range(10), limit, work)) == [list(range(0, 20, 2))]
    assert limit.rows is None
    assert list(map_chunks([], limit, work)) == []


def test_one_row_that_does_not_fit() -> None:
    limit = RowLimit(work="answering", advice="lower max_input_length", say=lambda _: None)
    with pytest.raises(CapacityError) as caught:
        list(map_chunks(range(3), limit, Work(0)))
    assert str(caught.value) == "out of memory while answering one row at a time; lower max_input_length"


def test_work_that_cannot_be_cut() -> None:
    limit = RowLimit(work="scoring", batch_setting="per_device_eval_batch_size")
    with pytest.raises(CapacityError, match=r"ranks that share one model .* lower per_device_eval_batch_size"):
        list(map_chunks(range(8), limit, Work(4)))


def test_other_errors_pass() -> None:
    def fails(rows: Sequence[int]) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(map_chunks(range(8), RowLimit(work="scoring"), fails))
    with pytest.raises(RuntimeError, match="a bug"), report_out_of_memory("loading"):
        raise RuntimeError("a bug")


def test_where_fewer_rows_would_not_help() -> None:
    with pytest.raises(CapacityError, match="out of memory while loading the model; take a smaller one"):  # noqa: SIM117
        with report_out_of_memory("loading the model", "take a smaller one"):
            raise MemoryError


def test_what_a_failed_attempt_held_is_free_before_the_next() -> None:
    held: list[int] = []

    class Holder:
        def __del__(self) -> None:
            held.remove(id(self))

    def work(rows: Sequence[int]) -> int:
        assert not held, "the first attempt still holds its memory"
        mine = Holder()
        held.append(id(mine))
        if len(rows) > 1:
            raise MemoryError
        return len(rows)

    assert list(map_chunks(range(2), RowLimit(work="scoring", say=lambda _: None), work)) == [1, 1]
