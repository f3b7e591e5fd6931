"""Counts the programs that JAX compiles, by the events that JAX publishes."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.monitoring

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def count_compilations(function: Callable) -> Iterator[Callable[[], int]]:
    """Give a function that returns how many programs of `function` were compiled so far.

    What earlier tests compiled is forgotten first, so the count does not depend on them. A program
    that comes out of the persistent cache counts as compiled.

    Args:
        function: jitted.
    """
    jax.clear_caches()
    name = function.__name__
    compiled = []

    def listen(event: str, duration: float, fun_name: str = "", **_: object) -> None:
        if event == COMPILED and fun_name in (name, f"jit({name})"):
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: len(compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
