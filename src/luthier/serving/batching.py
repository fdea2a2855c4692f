"""The queue before the model: rows that wait together are run together, and no more may wait than there is room for.

    submit ->  | waiting rows, bounded |  -> gather: the first, and what fits beside it -> run, on a thread of its own

A row that finds the model idle waits a moment (`window`) for company. It knows rows, nothing of models or of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from luthier.serving.refusals import Refusal
from luthier.serving.row import Row

log = logging.getLogger(__name__)


class Batching:
    """Rows in, batches out. `run` answers a batch (each of its rows ends); `fit` says whether rows can be one batch."""

    def __init__(
        self,
        run: Callable[[list[Row]], None],
        fit: Callable[[Sequence[Row]], bool],
        *,
        rows: int = 16,
        waiting: int = 256,
        window: float = 0.005,
    ) -> None:
        """`rows`: most rows of a batch; `waiting`: most rows that wait; `window`: seconds."""
        self._run, self._fit = run, fit
        self._rows, self._most, self._window = rows, waiting, window
        self._queue: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batching", daemon=True)
        self._thread.start()

    def admit(self, count: int) -> None:
        """Refuse a request for `count` answers that never find room together, before any work is done on it."""
        if count > self._most:
            raise Refusal(f"the request asks for {count:,} answers at once; this endpoint takes {self._most:,}")

    def submit(self, rows: Sequence[Row]) -> None:
        """Let rows wait for their turn, all or none. Refusal when there is no room for them."""
        self.admit(len(rows))
        with self._changed:
            if self._closed:
                raise Refusal("this endpoint is being stopped", 503, "overloaded")
            if len(self._queue) + len(rows) > self._most:
                raise Refusal(f"{len(self._queue)} rows wait already, of {self._most} that may; try again later",
                              503, "overloaded")  # fmt: skip
            self._queue.extend(rows)
            self._changed.notify_all()

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._gather():
            try:
                self._run(batch)
            except Exception as error:
                log.exception("a batch of %d rows failed", len(batch))
                for row in batch:
                    row.fail(error)
            for row in batch:
                if not row.done:
                    row.fail(Refusal("the model ended without an answer", 500, "generation"))

    def _gather(self) -> list[Row]:
        """The next batch; empty when closed and nothing waits."""
        with self._changed:
            while True:
                while self._queue and self._queue[0].done:
                    self._queue.popleft()
                if not self._queue:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._queue[0].arrived + self._window - time.monotonic()
                if left <= 0 or len(self._queue) >= self._rows or self._closed:
                    return self._take()
                self._changed.wait(left)

    def _take(self) -> list[Row]:
        """Off the queue: its first row, and in their order those that fit beside it."""
        batch: list[Row] = []
        left: deque[Row] = deque()
        for row in self._queue:
            if row.done:
                continue
            fits = len(batch) < self._rows and (not batch or self._fit([*batch, row]))
            (batch if fits else left).append(row)
        self._queue = left
        return batch
