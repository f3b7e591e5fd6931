import hashlib
import itertools

import google_crc32c
import numpy as np
import pytest

from extraction.checksums import crc32c, sha256


def bit_by_bit(data: bytes) -> str:
    """crc32c as RFC 3720 defines it: reflected polynomial 0x82F63B78."""
    value = 0xFFFF_FFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F6_3B78 if value & 1 else 0)
    return f"{value ^ 0xFFFF_FFFF:08x}"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", "e3069283"),  # the usual check value
        (bytes(32), "8a9136aa"),  # this and the next: RFC 3720, appendix B.4
        (b"\xff" * 32, "62a8ab43"),
        (bytes(range(32)), "46dd794e"),
        (b"", "00000000"),
    ],
)
def test_published_values(data, expected):
    assert crc32c(data) == bit_by_bit(data) == expected


def test_leading_zeros_are_kept():
    texts = (str(number).encode() for number in itertools.count())
    short = next(text for text in texts if _value(text) < 1 << 20)
    assert crc32c(short) == bit_by_bit(short)
    assert crc32c(short).startswith("000")


def _value(data: bytes) -> int:
    return google_crc32c.value(data)


def test_sha256_is_hashlibs():
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_005])
def test_pieces_count_as_one(size):
    data = np.random.default_rng(size).bytes(size)
    whole = f"{_value(data):08x}", hashlib.sha256(data).hexdigest()
    for cuts in ([0, size], [0, 0, size // 3, size // 2, size, size]):
        cut = [memoryview(data)[a:b] for a, b in itertools.pairwise(cuts)]
        assert (crc32c(cut), sha256(cut)) == whole
    for same in (data, memoryview(data)):
        assert (crc32c(same), sha256(same)) == whole


def test_arrays_count_by_their_bytes():
    array = np.arange(1000, dtype="<f4").reshape(10, 100)
    assert crc32c([array.data]) == crc32c(array.tobytes())
    assert sha256([b"head", array.data]) == hashlib.sha256(b"head" + array.tobytes()).hexdigest()
