"""Cyclic redundancy checks of any width: over a stream, and of two stretches put together.

zlib has CRC-32 alone. The others are computed here: numpy, imported only when one is asked for, runs many short lanes
side by side (about 100 MB/s), which are then joined as two stretches are. Polynomials are in reflected form; every
check starts from ones and ends inverted, as S3's three do.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

LANE = 64  # bytes that each lane runs over
GATHERED = 1 << 20  # bytes; many lanes at once are three times as fast as few
CRC32, CRC32C = (32, 0xEDB88320), (32, 0x82F63B78)
CRC64NVME = (64, 0x9A6C9329AC4BC9B5)


class Crc:
    """One running check; `form` is (width in bits, reflected polynomial)."""

    def __init__(self, form: tuple[int, int]) -> None:
        self.form = form
        self._ones = (1 << form[0]) - 1
        self._state = self._ones
        self._waiting = bytearray()

    def update(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= GATHERED:
            self._take()

    def _take(self) -> None:
        view, self._waiting = memoryview(self._waiting), bytearray()
        while view:
            lanes = len(view) // LANE
            if lanes < 16:
                self._state = _plain(self._state, view, self.form)
                return
            size = LANE << (lanes.bit_length() - 1)
            before = _multiply(self._state, _power(size, self.form), self.form)
            self._state = before ^ _in_lanes(view[:size], self.form)
            view = view[size:]

    def digest(self) -> bytes:
        self._take()
        return (self._state ^ self._ones).to_bytes(self.form[0] // 8, "big")


def joined(first: bytes, second: bytes, size: int, form: tuple[int, int]) -> bytes:
    """The check of two stretches from those of each; `size` is the second's length in bytes."""
    shifted = _multiply(int.from_bytes(first, "big"), _power(size, form), form)
    return (shifted ^ int.from_bytes(second, "big")).to_bytes(form[0] // 8, "big")


def _plain(state: int, view: memoryview, form: tuple[int, int]) -> int:
    table = _table(form)
    for byte in view:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


def _in_lanes(view: memoryview, form: tuple[int, int]) -> int:
    """The bare remainder (from zero, not inverted) of LANE * 2^k bytes."""
    numpy = importlib.import_module("numpy")
    kind = numpy.uint64 if form[0] == 64 else numpy.uint32
    table, low, eight = numpy.array(_table(form), dtype=kind), kind(0xFF), kind(8)
    columns = numpy.ascontiguousarray(numpy.frombuffer(view, dtype=numpy.uint8).reshape(-1, LANE).T).astype(kind)
    states = numpy.zeros(columns.shape[1], dtype=kind)
    for column in columns:
        states = table[(states ^ column) & low] ^ (states >> eight)
    size = LANE
    while len(states) > 1:
        states = _shifted(states[0::2], size, form, numpy) ^ states[1::2]
        size *= 2
    return int(states[0])


def _shifted(states: Any, size: int, form: tuple[int, int], numpy: Any) -> Any:
    total = numpy.zeros_like(states)
    for index, table in enumerate(_shift_tables(size, form)):
        byte = (states >> states.dtype.type(8 * index)) & states.dtype.type(0xFF)
        total ^= numpy.array(table, dtype=states.dtype)[byte]
    return total


@lru_cache(maxsize=8)
def _table(form: tuple[int, int]) -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (form[1] if byte & 1 else 0)
        table.append(byte)
    return table


@lru_cache(maxsize=64)
def _shift_tables(size: int, form: tuple[int, int]) -> list[list[int]]:
    """For each byte of a remainder, what it becomes when `size` bytes of zeros follow."""
    power = _power(size, form)
    tables = []
    for index in range(form[0] // 8):
        table = [0] * 256
        for bit in range(8):
            image = _multiply(1 << (8 * index + bit), power, form)
            for low in range(1 << bit):
                table[1 << bit | low] = table[low] ^ image
        tables.append(table)
    return tables


@lru_cache(maxsize=256)
def _power(size: int, form: tuple[int, int]) -> int:
    """x to the power of 8 * `size`, modulo the polynomial."""
    result, square = 1 << (form[0] - 1), 1 << (form[0] - 9)  # 1 and x^8: the highest bit is the lowest power
    while size:
        if size & 1:
            result = _multiply(result, square, form)
        square = _multiply(square, square, form)
        size >>= 1
    return result


def _multiply(first: int, second: int, form: tuple[int, int]) -> int:
    """The product of two polynomials, modulo the third."""
    product = 0
    for power in range(form[0] - 1, -1, -1):
        if first >> power & 1:
            product ^= second
        second = second >> 1 ^ (form[1] if second & 1 else 0)
    return product
