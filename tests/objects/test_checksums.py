"""CRCs against a bitwise reference and the published check values, in any pieces, and combined."""

from __future__ import annotations

import base64
import random
import zlib

import pytest

from luthier.objects.checksums import ALGORITHMS, FULL, multipart_checksum

CRCS = {"CRC32": (32, 0xEDB88320), "CRC32C": (32, 0x82F63B78), "CRC64NVME": (64, 0x9A6C9329AC4BC9B5)}
SIZES = [0, 1, 63, 1023, 1024, 1025, 65536, (1 << 20) - 1, 1 << 20, 2_500_001]


def crc(algorithm: str, *pieces: bytes) -> bytes:
    hasher = ALGORITHMS[algorithm]()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def reference_crc(algorithm: str, data: bytes) -> bytes:
    """Bit by bit, by the reflected polynomial."""
    width, polynomial = CRCS[algorithm]
    state = ones = (1 << width) - 1
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (polynomial if state & 1 else 0)
    return (state ^ ones).to_bytes(width // 8, "big")


@pytest.mark.parametrize(
    ("algorithm", "check"), [("CRC32", "cbf43926"), ("CRC32C", "e3069283"), ("CRC64NVME", "ae8b14860a799888")]
)
def test_the_published_check_values(algorithm: str, check: str) -> None:
    assert crc(algorithm, b"123456789").hex() == check == reference_crc(algorithm, b"123456789").hex()


@pytest.mark.parametrize("algorithm", CRCS)
def test_as_the_reference(algorithm: str) -> None:
    for size in (0, 1, 7, 8, 63, 1025, 4097):
        data = random.Random(size).randbytes(size)
        assert crc(algorithm, data) == reference_crc(algorithm, data)


@pytest.mark.parametrize("size", SIZES)
def test_as_zlib(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc("CRC32", data) == zlib.crc32(data).to_bytes(4, "big")


@pytest.mark.parametrize("algorithm", CRCS)
def test_pieces_make_no_difference_and_can_be_combined(algorithm: str) -> None:
    data = random.Random(1).randbytes(1_300_003)
    whole = crc(algorithm, data)
    for cut in (0, 1, 777, 1 << 20, len(data)):
        pieces = data[:cut], data[cut:]
        assert crc(algorithm, *pieces) == whole
        parts = [(base64.b64encode(crc(algorithm, piece)).decode(), len(piece)) for piece in pieces]
        assert base64.b64decode(multipart_checksum(algorithm, FULL, parts).value) == whole
