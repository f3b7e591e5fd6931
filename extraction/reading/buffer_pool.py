"""A pool of buffers that are used again once no array refers to them.

The system zeroes fresh memory, which takes about as long as reading a cached file into it; without
the pool a stream of batches would pay for that with every file.
"""

import collections
import contextlib
import weakref
from collections.abc import Callable

import numpy as np

STEP = 1 << 16
"""Sizes are rounded up to multiples of it, so that files of similar size share buffers."""

TakeMemory = Callable[[int], np.ndarray]
"""Returns an uninitialised `[size]` uint8 array that nobody else holds."""


def fresh_memory(size: int) -> np.ndarray:
    """Return a new buffer; a `TakeMemory`."""
    return np.empty(size, np.uint8)


class RecycledMemory:
    """A pool of buffers. Thread-safe.

    Args:
        most: most free buffers kept; None: as many as were ever in use at once.
    """

    def __init__(self, most: int | None = None):
        # No lock: the finalizer that returns a buffer may run at any point, even within `take`.
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=most)

    def take(self, size: int) -> np.ndarray:
        """Return a buffer that is reused once it and all its views are freed; a `TakeMemory`."""
        if not size:
            return fresh_memory(0)
        rounded = -(-size // STEP) * STEP
        memory = self._kept(rounded)
        if memory is None:
            memory = fresh_memory(rounded)
        # From a memoryview: numpy would make views refer to `memory` itself, and not to `given`.
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
