"""crc32c, which Google Cloud Storage knows of every object, and sha256, which nobody can forge."""

import hashlib

import google_crc32c
import numpy as np

from extraction.storage import Content, pieces


def crc32c(data: Content) -> str:
    """Eight hexadecimal digits."""
    value = 0
    for piece in pieces(data):
        # The library takes numpy's arrays without a copy, and no memoryviews.
        value = google_crc32c.extend(value, np.frombuffer(piece, np.uint8))
    return f"{value:08x}"


def sha256(data: Content) -> str:
    """64 hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces(data):
        digest.update(piece)
    return digest.hexdigest()
