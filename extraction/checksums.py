"""crc32c, which Google Cloud Storage tells for every object, and sha256, which cannot be forged."""

import hashlib

import google_crc32c
import numpy as np

from extraction.storage import Content, pieces


def crc32c(data: Content) -> str:
    """Return the crc32c of a content as eight hexadecimal digits."""
    value = 0
    for piece in pieces(data):
        # The library accepts numpy arrays without a copy, but not memoryviews.
        value = google_crc32c.extend(value, np.frombuffer(piece, np.uint8))
    return f"{value:08x}"


def sha256(data: Content) -> str:
    """Return the sha256 of a content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces(data):
        digest.update(piece)
    return digest.hexdigest()
