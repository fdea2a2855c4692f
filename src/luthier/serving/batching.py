"""Dynamic batching: a bounded queue of rows; rows that are queued together run as one batch.

    submit ->  | queued rows |  -> the oldest row, and those that fit in a batch with it -> run, on a thread of its own

A row that finds the model idle waits up to `max_delay` for others. Knows nothing of models or of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from luthier.serving.errors import InvocationError
from luthier.serving.row import BatchRow

log = logging.getLogger(__name__)


class BatchQueue:
    """Calls `run` with each batch, which must finish its rows; `can_batch` decides which rows fit together."""

    def __init__(
        self, run: Callable[[list[BatchRow]], None], can_batch: Callable[[Sequence[BatchRow]], bool], *,
        max_rows: int = 16, max_waiting: int = 256, max_delay: float = 0.005,
    ) -> None:  # fmt: skip
        """`max_rows`: rows per batch; `max_waiting`: rows in the queue; `max_delay`: seconds."""
        self._run, self._can_batch = run, can_batch
        self._max_rows, self._max_waiting, self._max_delay = max_rows, max_waiting, max_delay
        self._queue: deque[BatchRow] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batching", daemon=True)
        self._thread.start()

    def check_size(self, count: int) -> None:
        """Raise InvocationError for a request of `count` rows that can never fit in the queue."""
        if count > self._max_waiting:
            raise InvocationError(
                f"the request needs {count:,} completions; this endpoint accepts at most {self._max_waiting:,} at once"
            )

    def submit(self, rows: Sequence[BatchRow]) -> None:
        """Queue the rows, all or none. InvocationError if the queue is full or closed."""
        self.check_size(len(rows))
        with self._changed:
            if self._closed:
                raise InvocationError("this endpoint is shutting down", 503, "overloaded")
            waiting = len(self._queue)
            if waiting + len(rows) > self._max_waiting:
                message = f"queue full ({waiting} of {self._max_waiting} rows waiting); retry later"
                raise InvocationError(message, 503, "overloaded")
            self._queue.extend(rows)
            self._changed.notify_all()

    def close(self) -> None:
        """Finish the queued rows, then stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run(batch)
            except Exception as error:
                log.exception("a batch of %d rows failed", len(batch))
                for row in batch:
                    row.fail(error)
            for row in batch:
                if not row.is_done:
                    row.fail(InvocationError("the model returned no completion", 500, "generation"))

    def _next_batch(self) -> list[BatchRow]:
        """Wait for the next batch; empty when closed and the queue is empty."""
        with self._changed:
            while True:
                while self._queue and self._queue[0].is_done:
                    self._queue.popleft()
                if not self._queue:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                delay = self._queue[0].arrival_time + self._max_delay - time.monotonic()
                if delay <= 0 or len(self._queue) >= self._max_rows or self._closed:
                    return self._pop_batch()
                self._changed.wait(delay)

    def _pop_batch(self) -> list[BatchRow]:
        """Remove the first row and, in order, those that fit in a batch with it."""
        batch: list[BatchRow] = []
        rest: deque[BatchRow] = deque()
        for row in self._queue:
            if row.is_done:
                continue
            fits = len(batch) < self._max_rows and (not batch or self._can_batch([*batch, row]))
            (batch if fits else rest).append(row)
        self._queue = rest
        return batch
