"""Memory that is used again once nobody holds an array in it.

The system zeroes fresh memory before it gives it out, which costs about as much time as reading a
cached file into it; a stream of batches would pay that for every file.
"""

import collections
import weakref

import numpy as np

STEP = 1 << 16
"""Sizes are rounded up to multiples of it, so that files of about one size share memory."""


class RecycledMemory:
    """Gives out memory; what it keeps is at most what was in use at one time. Thread-safe."""

    def __init__(self):
        # No lock: what is freed comes back wherever the collector runs, within `take` among it.
        self._free: dict[int, collections.deque[np.ndarray]] = collections.defaultdict(
            collections.deque
        )

    def take(self, size: int) -> np.ndarray:
        """`[size]` uint8 whose content is not set; views of it hold the memory too."""
        free = self._free[-(-size // STEP) * STEP]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(-(-size // STEP) * STEP, np.uint8)
        given = np.frombuffer(memory, np.uint8, size) if size else memory[:0]
        weakref.finalize(given, free.append, memory).atexit = False
        return given
