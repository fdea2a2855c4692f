"""Each row attends to itself alone, wherever its slot lies and whatever lay there before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.layers.kv_cache import BLOCK, CacheSlots

HEADS, KEYS, SIZE, SCALE = 4, 2, 8, 0.3


def expected(query_HD: Tensor, keys_TKD: Tensor, values_TKD: Tensor, window: int | None) -> Tensor:
    """One row's newest query over its own keys and values."""
    seen = slice(None) if window is None else slice(-window, None)
    key, value = (x[seen].transpose(0, 1).repeat_interleave(HEADS // KEYS, 0) for x in (keys_TKD, values_TKD))
    return F.scaled_dot_product_attention(query_HD[:, None], key, value, scale=SCALE)[:, 0]


class Rows:
    """CacheSlots beside the same rows kept one by one."""

    def __init__(self, slots: int, window: int | None) -> None:
        self.slots, self.window = CacheSlots(slots, 1), window
        self.kept: list[tuple[Tensor, Tensor]] = []

    def begin(self, places: list[int], lengths: list[int]) -> None:
        total = sum(lengths)
        key, value = torch.randn(total, KEYS, SIZE), torch.randn(total, KEYS, SIZE)
        self.slots.fill(0, places, key, value, lengths)
        self.slots.begin(places, lengths)
        for place, *pair in zip(places, key.split(lengths), value.split(lengths), strict=True):
            self.kept[place : place + 1] = [(pair[0], pair[1])]

    def end(self, place: int) -> None:
        self.slots.end(place)
        last = self.kept.pop()
        if place < len(self.kept):
            self.kept[place] = last

    def step(self) -> None:
        """A token for each row; each attends as it does alone."""
        rows = len(self.kept)
        query = torch.randn(rows, HEADS, SIZE)
        key, value = torch.randn(rows, KEYS, SIZE), torch.randn(rows, KEYS, SIZE)
        positions = self.slots.begin_step(torch.device("cpu"))
        assert positions.tolist() == [len(keys) for keys, _ in self.kept]
        found = self.slots.attend(0, query, key, value, SCALE, self.window)
        self.kept = [
            (torch.cat([keys, key[row : row + 1]]), torch.cat([values, value[row : row + 1]]))
            for row, (keys, values) in enumerate(self.kept)
        ]
        for row, (keys, values) in enumerate(self.kept):
            torch.testing.assert_close(found[row], expected(query[row], keys, values, self.window))


@pytest.mark.parametrize("window", [None, 5, 1])
def test_rows_come_go_and_move_and_see_nothing_but_themselves(window: int | None) -> None:
    torch.manual_seed(0)
    rows = Rows(3, window)
    rows.begin([0, 1, 2], [4, 1, 9])
    for _ in range(3):
        rows.step()
    rows.begin([1], [2])  # a shorter row where a longer one was
    rows.step()
    rows.end(0)  # the last one moves to its place
    rows.step()
    rows.begin([2], [6])
    rows.step()
    rows.end(2)
    rows.end(0)
    rows.step()


def test_room_grows_with_the_longest_row() -> None:
    torch.manual_seed(0)
    rows = Rows(2, None)
    rows.begin([0], [BLOCK - 2])
    for _ in range(4):
        rows.step()
    rows.begin([1], [3 * BLOCK + 1])
    rows.step()
