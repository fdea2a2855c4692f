"""CRCs against zlib, against the published check values, in any pieces, and joined."""

from __future__ import annotations

import random
import zlib

import pytest

from luthier.objects.crc import CRC32, CRC32C, CRC64NVME, Crc, joined

FORMS = [CRC32, CRC32C, CRC64NVME]
SIZES = [0, 1, 63, 1023, 1024, 1025, 65536, (1 << 20) - 1, 1 << 20, 2_500_001]


def crc(form: tuple[int, int], *pieces: bytes) -> bytes:
    running = Crc(form)
    for piece in pieces:
        running.update(piece)
    return running.digest()


@pytest.mark.parametrize(
    ("form", "check"), [(CRC32, "cbf43926"), (CRC32C, "e3069283"), (CRC64NVME, "ae8b14860a799888")]
)
def test_the_published_check_values(form: tuple[int, int], check: str) -> None:
    assert crc(form, b"123456789").hex() == check


@pytest.mark.parametrize("size", SIZES)
def test_as_zlib(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc(CRC32, data) == zlib.crc32(data).to_bytes(4, "big")


@pytest.mark.parametrize("form", FORMS)
def test_pieces_make_no_difference_and_can_be_joined(form: tuple[int, int]) -> None:
    data = random.Random(1).randbytes(1_300_003)
    whole = crc(form, data)
    for cut in (0, 1, 777, 1 << 20, len(data)):
        assert crc(form, data[:cut], data[cut:]) == whole
        assert joined(crc(form, data[:cut]), crc(form, data[cut:]), len(data) - cut, form) == whole
