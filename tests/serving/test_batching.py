"""Rows queued together run as one batch, none is lost, and the queue is bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from luthier.catalog.locate import EMBEDDED
from luthier.data.tokenize import Tokenizer
from luthier.serving.batching import BatchQueue
from luthier.serving.detokenizer import Detokenizer
from luthier.serving.errors import InvocationError
from luthier.serving.row import BatchRow, Completion, GenerationRequest
from luthier.weights.sample import SamplingParameters

TOKENIZER = Tokenizer.load(EMBEDDED)


def row(size: int = 1) -> BatchRow:
    request = GenerationRequest(
        prompt="", prompt_ids=[5] * size, max_new_tokens=4, choice=SamplingParameters(), stop_ids=frozenset()
    )
    return BatchRow(request=request, detokenizer=Detokenizer(TOKENIZER, []))


def complete(rows: Sequence[BatchRow]) -> None:
    for one in rows:
        completion = Completion(prompt="", text="", finish_reason="length", token_count=0, prompt_tokens=0)
        one.completions.set_result([completion])


class Recorder:
    """A model that notes its batches and waits for leave to answer."""

    def __init__(self) -> None:
        self.batches: list[list[BatchRow]] = []
        self.leave = threading.Event()
        self.begun = threading.Event()

    def run(self, rows: list[BatchRow]) -> None:
        self.batches.append(rows)
        self.begun.set()
        assert self.leave.wait(10)
        complete(rows)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@contextmanager
def batching(
    run: Callable[[list[BatchRow]], None],
    can_batch: Callable[[Sequence[BatchRow]], bool] = lambda rows: True,
    **limits: float,
) -> Iterator[BatchQueue]:
    queue = BatchQueue(run, can_batch, **limits)  # type: ignore[arg-type]
    try:
        yield queue
    finally:
        queue.close()


def wait_for(rows: Sequence[BatchRow]) -> None:
    for one in rows:
        one.completions.result(10)


def test_what_comes_within_the_window_is_one_batch() -> None:
    recorder = Recorder()
    recorder.leave.set()
    rows = [row() for _ in range(5)]
    with batching(recorder.run, max_delay=0.3) as queue:
        for one in rows:
            queue.submit([one])
        wait_for(rows)
    assert recorder.batches == [rows]


def test_a_full_batch_waits_for_nobody() -> None:
    recorder = Recorder()
    recorder.leave.set()
    rows = [row() for _ in range(4)]
    began = time.monotonic()
    with batching(recorder.run, max_rows=2, max_delay=30) as queue:
        queue.submit(rows)
        wait_for(rows)
    assert recorder.sizes == [2, 2]
    assert time.monotonic() - began < 10


def test_what_comes_while_a_batch_runs_is_the_next_and_in_order() -> None:
    recorder = Recorder()
    rows = [row() for _ in range(6)]
    with batching(recorder.run, max_rows=4, max_delay=0) as queue:
        queue.submit(rows[:1])
        assert recorder.begun.wait(10)
        for one in rows[1:]:
            queue.submit([one])
        recorder.leave.set()
        wait_for(rows)
    assert recorder.batches == [rows[:1], rows[1:5], rows[5:]]


def test_rows_that_do_not_fit_beside_the_first_wait_and_are_next() -> None:
    recorder = Recorder()
    recorder.leave.set()
    rows = [row(size) for size in (1, 9, 1, 9, 1)]
    with batching(
        recorder.run, lambda some: len({len(one.request.prompt_ids) for one in some}) == 1, max_delay=0.2
    ) as queue:
        queue.submit(rows)
        wait_for(rows)
    assert recorder.batches == [[rows[0], rows[2], rows[4]], [rows[1], rows[3]]]


def test_no_more_wait_than_may() -> None:
    recorder = Recorder()
    first, waiting = row(), [row(), row()]
    with batching(recorder.run, max_waiting=2, max_delay=0) as queue:
        queue.submit([first])
        assert recorder.begun.wait(10)
        queue.submit(waiting)
        with pytest.raises(InvocationError, match=r"queue full \(2 of 2 rows waiting\); retry later") as caught:
            queue.submit([row()])
        assert (caught.value.status, caught.value.error_type) == (503, "overloaded")
        with pytest.raises(
            InvocationError, match="needs 3 completions; this endpoint accepts at most 2 at once"
        ) as caught:
            queue.submit([row(), row(), row()])
        assert caught.value.status == 400
        recorder.leave.set()
        wait_for([first, *waiting])
        queue.submit([row()])


def test_rows_that_were_called_off_are_not_run() -> None:
    recorder = Recorder()
    first, gone, kept = row(), row(), row()
    with batching(recorder.run, max_delay=0) as queue:
        queue.submit([first])
        assert recorder.begun.wait(10)
        queue.submit([gone, kept])
        gone.cancelled = True
        recorder.leave.set()
        wait_for([kept])
    assert recorder.batches == [[first], [kept]]


def test_a_batch_that_fails_fails_its_rows_and_no_others() -> None:
    rows = [row(), row(), row()]

    def run(some: list[BatchRow]) -> None:
        if some[0] is rows[0]:
            raise ValueError("boom")
        if some[0] is rows[1]:
            return  # forgets to answer
        complete(some)

    with batching(run, max_rows=1) as queue:
        queue.submit(rows)
        with pytest.raises(ValueError, match="boom"):
            rows[0].completions.result(10)
        with pytest.raises(InvocationError, match="no completion"):
            rows[1].completions.result(10)
        assert rows[2].completions.result(10)


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    recorder = Recorder()
    rows = [row(), row(), row()]
    queue = BatchQueue(recorder.run, lambda rows: True, max_rows=1, max_delay=0)
    queue.submit(rows)
    assert recorder.begun.wait(10)
    closing = threading.Thread(target=queue.close)
    closing.start()
    time.sleep(0.05)
    with pytest.raises(InvocationError, match="shutting down"):
        queue.submit([row()])
    recorder.leave.set()
    closing.join(10)
    assert all(one.completions.done() for one in rows)


def test_many_threads_lose_no_row() -> None:
    done: list[BatchRow] = []

    def run(some: list[BatchRow]) -> None:
        done.extend(some)
        complete(some)

    rows = [[row() for _ in range(25)] for _ in range(8)]

    def submit(queue: BatchQueue, some: list[BatchRow]) -> None:
        for one in some:
            queue.submit([one])

    with batching(run, max_rows=7, max_delay=0.001) as queue:
        threads = [threading.Thread(target=submit, args=(queue, some)) for some in rows]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for some in rows:
            wait_for(some)
    assert len(done) == len(set(map(id, done))) == 200
