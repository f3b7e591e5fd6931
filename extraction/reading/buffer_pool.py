"""Memory that is used again once nobody holds an array in it.

The system zeroes fresh memory before it gives it out, which costs about as much time as reading a
cached file into it; a stream of batches would pay that for every file.
"""

import collections
import contextlib
import weakref
from collections.abc import Callable

import numpy as np

STEP = 1 << 16
"""Sizes are rounded up to multiples of it, so that files of about one size share memory."""

TakeMemory = Callable[[int], np.ndarray]
"""Gives `[size]` uint8, whose content is not set, that nobody else holds."""


def fresh_memory(size: int) -> np.ndarray:
    """A `TakeMemory`."""
    return np.empty(size, np.uint8)


class RecycledMemory:
    """Gives out memory. Thread-safe.

    Args:
        most: pieces that are kept for later; None: as many as were in use at one time.
    """

    def __init__(self, most: int | None = None):
        # No lock: what is freed comes back wherever the collector runs, within `take` among it.
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=most)

    def take(self, size: int) -> np.ndarray:
        """A `TakeMemory`; views of what it gives hold the memory too."""
        if not size:
            return fresh_memory(0)
        rounded = -(-size // STEP) * STEP
        memory = self._kept(rounded)
        if memory is None:
            memory = fresh_memory(rounded)
        # Of a memoryview: a view of an array's view would hold the first array only.
        given = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(given, self._free.append, memory).atexit = False
        return given

    def _kept(self, size: int) -> np.ndarray | None:
        with contextlib.suppress(IndexError):  # another thread took the last one
            for _ in range(len(self._free)):
                memory = self._free.popleft()
                if len(memory) == size:
                    return memory
                self._free.append(memory)
        return None
