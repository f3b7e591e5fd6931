"""crc32c, which Google Cloud Storage knows of every object, and sha256, which nobody can forge."""

import hashlib

import google_crc32c

from extraction.storage import Buffers, pieces

STEP = 1 << 20
"""Bytes copied at a time: the crc32c library takes nothing but `bytes`."""


def crc32c(data: bytes | memoryview | Buffers) -> str:
    """Eight hexadecimal digits."""
    value = 0
    for piece in pieces(data):
        for start in range(0, len(piece), STEP):
            value = google_crc32c.extend(value, bytes(piece[start : start + STEP]))
    return f"{value:08x}"


def sha256(data: bytes | memoryview | Buffers) -> str:
    """64 hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces(data):
        digest.update(piece)
    return digest.hexdigest()
