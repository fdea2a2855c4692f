"""S3's checksums: compute them while a body streams, compare them with the client's, store and combine them.

XXHASH checksums are refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from awscrt import checksums as crt

from luthier.objects.errors import s3_error

HEADER = "x-amz-checksum-"
FULL, COMPOSITE = "FULL_OBJECT", "COMPOSITE"


class Hasher(Protocol):
    """A running checksum, with the interface of hashlib's."""

    def update(self, data: bytes, /) -> object: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class CrcFunctions:
    """`update(data, crc)` continues a CRC, `combine(first, second, second_size)` is the CRC of two blocks in a row."""

    size: int
    update: Callable[[bytes, int], int]
    combine: Callable[[int, int, int], int]


CRCS: Mapping[str, CrcFunctions] = {
    "CRC32": CrcFunctions(4, zlib.crc32, crt.combine_crc32),
    "CRC32C": CrcFunctions(4, crt.crc32c, crt.combine_crc32c),
    "CRC64NVME": CrcFunctions(8, crt.crc64nvme, crt.combine_crc64nvme),
}


class _Crc:
    def __init__(self, algorithm: str) -> None:
        self._functions = CRCS[algorithm]
        self._crc = 0

    def update(self, data: bytes) -> None:
        self._crc = self._functions.update(data, self._crc)

    def digest(self) -> bytes:
        return self._crc.to_bytes(self._functions.size, "big")


ALGORITHMS: Mapping[str, Callable[[], Hasher]] = {
    **{name: partial(_Crc, name) for name in CRCS},
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "SHA256": hashlib.sha256,
    "SHA512": hashlib.sha512,
    "MD5": lambda: hashlib.md5(usedforsecurity=False),
}
UNSUPPORTED = ("XXHASH64", "XXHASH3", "XXHASH128")


@dataclass(frozen=True, slots=True)
class Checksum:
    """`value` is base64; a composite one ends in -N for N parts."""

    algorithm: str
    value: str
    kind: str = FULL

    def members(self) -> dict[str, str]:
        """The checksum as members of an S3 response."""
        return {f"Checksum{self.algorithm}": self.value, "ChecksumType": self.kind}

    def to_row(self) -> list[str]:
        return [self.algorithm, self.value, self.kind]


def checksum_from_row(row: Sequence[str]) -> Checksum | None:
    """The inverse of `Checksum.to_row`; None for an object without a checksum."""
    return Checksum(*row) if row else None


@dataclass(frozen=True, slots=True)
class BodyChecksums:
    """The checksums that a request declares for its body: an MD5 in hexadecimal, an algorithm, its expected value.

    `trailers` are the fields sent after the body, which may have that value; filled while the body is read.
    """

    algorithm: str = ""
    value: str = ""
    md5: str = ""
    trailers: Mapping[str, str] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """The expected value, from a header or a trailing field; empty for none."""
        return self.value or self.trailers.get(f"{HEADER}{self.algorithm.lower()}", "")


def parse_checksums(
    parameters: Mapping[str, Any], trailer_names: str = "", trailers: Mapping[str, str] | None = None
) -> BodyChecksums:
    """Read a request's Content-MD5, checksum and algorithm; WireError for malformed or unknown ones.

    `trailer_names` is the header x-amz-trailer: the names of the fields that follow the body.
    """
    sent = {name: str(parameters[f"Checksum{name}"]) for name in ALGORITHMS if parameters.get(f"Checksum{name}")}
    for name in UNSUPPORTED:
        if parameters.get(f"Checksum{name}"):
            raise _unsupported(name)
    if len(sent) > 1:
        raise s3_error("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not "
                      "allowed.")  # fmt: skip
    in_trailer = [
        name.strip()[len(HEADER) :] for name in trailer_names.lower().split(",") if name.strip().startswith(HEADER)
    ]
    named = check_algorithm(parameters.get("ChecksumAlgorithm") or next(iter(in_trailer), ""))
    for name, value in sent.items():
        if not _is_base64(value, len(ALGORITHMS[name]().digest())):
            raise s3_error("InvalidRequest", f"Value for x-amz-checksum-{name.lower()} header is invalid.")
    algorithm = next(iter(sent), named)
    after = {} if trailers is None else trailers  # not a copy: it is filled later
    return BodyChecksums(algorithm, sent.get(algorithm, ""), _md5(parameters.get("ContentMD5")), after)


def check_algorithm(algorithm: str) -> str:
    """`algorithm` in upper case if it is supported ("" for none); WireError otherwise."""
    if algorithm and algorithm.upper() not in ALGORITHMS:
        if algorithm.upper() in UNSUPPORTED:
            raise _unsupported(algorithm)
        raise s3_error("InvalidRequest", "Checksum algorithm provided is unsupported. Please try again with any of the "
                      f"valid types: [{', '.join(ALGORITHMS)}]")  # fmt: skip
    return algorithm.upper()


def _unsupported(algorithm: str) -> Exception:
    return s3_error(
        "NotImplemented", f"checksum {algorithm}: not offered here; expected one of {', '.join(ALGORITHMS)}"
    )


def _md5(sent: str | None) -> str:
    if sent is None:
        return ""
    if not _is_base64(sent, 16):
        raise s3_error("InvalidDigest")
    return base64.b64decode(sent).hex()


def _is_base64(text: str, size: int) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == size
    except (binascii.Error, ValueError):
        return False


class Digest:
    """Size, MD5 and further checksums of a streaming body."""

    def __init__(self, algorithms: Iterable[str] = ()) -> None:
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._hashers = {name: ALGORITHMS[name]() for name in algorithms if name}

    def update(self, data: bytes) -> None:
        self.size += len(data)
        self._md5.update(data)
        for hasher in self._hashers.values():
            hasher.update(data)

    @property
    def etag(self) -> str:
        return self._md5.hexdigest()

    def value(self, algorithm: str) -> str:
        return base64.b64encode(self._hashers[algorithm].digest()).decode("ascii")

    def checksum(self, algorithm: str) -> Checksum | None:
        return Checksum(algorithm, self.value(algorithm)) if algorithm else None

    def verify(self, expected: BodyChecksums) -> None:
        """WireError BadDigest if the body differs from what the client declared."""
        if expected.md5 and expected.md5 != self.etag:
            raise s3_error("BadDigest", "The Content-MD5 you specified did not match what we received.")
        if expected.expected and expected.expected != self.value(expected.algorithm):
            raise s3_error(
                "BadDigest", f"The {expected.algorithm} you specified did not match the calculated checksum."
            )


def multipart_etag(etags: Sequence[str]) -> str:
    """S3's ETag of a multipart object: the MD5 of the parts' MD5s, and the number of parts."""
    return f"{hashlib.md5(bytes.fromhex(''.join(etags)), usedforsecurity=False).hexdigest()}-{len(etags)}"


def multipart_kind(algorithm: str, requested: str) -> str:
    """FULL or COMPOSITE, the type of an upload's checksum; empty for no algorithm. WireError for what S3 refuses."""
    if not algorithm:
        if requested:
            raise s3_error("InvalidRequest", "The x-amz-checksum-type header can only be used with the "
                          "x-amz-checksum-algorithm header.")  # fmt: skip
        return ""
    kind = requested or (FULL if algorithm == "CRC64NVME" else COMPOSITE)
    possible = [*([FULL] if algorithm in CRCS else []), *([COMPOSITE] if algorithm != "CRC64NVME" else [])]
    if kind not in possible:
        raise s3_error("InvalidRequest", f"The {kind} checksum type cannot be used with the {algorithm.lower()} "
                      "checksum algorithm.")  # fmt: skip
    return kind


def multipart_checksum(algorithm: str, kind: str, parts: Sequence[tuple[str, int]]) -> Checksum:
    """An object's checksum from (value, size) of each of its parts."""
    digests = [base64.b64decode(value) for value, _ in parts]
    if kind == COMPOSITE:
        hasher = ALGORITHMS[algorithm]()
        hasher.update(b"".join(digests))
        return Checksum(algorithm, f"{base64.b64encode(hasher.digest()).decode('ascii')}-{len(parts)}", COMPOSITE)
    functions, whole = CRCS[algorithm], int.from_bytes(digests[0], "big")
    for digest, (_, size) in zip(digests[1:], parts[1:], strict=True):
        whole = functions.combine(whole, int.from_bytes(digest, "big"), size)
    return Checksum(algorithm, base64.b64encode(whole.to_bytes(functions.size, "big")).decode("ascii"), FULL)
