"""A pause of Python's cyclic garbage collector, for work that makes very many objects and no cycle.

Reading the records of a large run makes millions of objects that stay. The collector would go
through all of them again and again, for a quarter of the time, and find nothing.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses it for the block, if it was on; reference counting goes on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
