"""A pause of Python's cyclic garbage collector, for work that makes many objects and no cycle.

Reading the records of a large run makes millions of long-lived objects. The collector would visit
all of them again and again, which takes a quarter of the time, and find nothing.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector for a `with` block, if it was on; reference counting goes on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
