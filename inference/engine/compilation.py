"""The cache of compiled programs, and the time that JAX spends compiling.

Tracing, lowering and compiling report their durations through `jax.monitoring` when they end. One
may contain another: a jitted function inside a jitted function is traced within it.
"""

import os
import time
from types import TracebackType

import jax
import jax.monitoring

CACHE = "~/.cache/qwen_activation_extraction/xla"

EVENTS = "/jax/core/compile/"
"""Prefix of the names of those events; reading a program from the cache is one of them."""


def use_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs in a folder for later runs.

    Args:
        folder: the folder; None: `JAX_COMPILATION_CACHE_DIR`, or one in ~/.cache; "": no cache.
    """
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", CACHE)
    if folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class CompileTime:
    """Seconds of compiling within a `with` block, over all threads.

    Attributes:
        seconds: seconds so far; overlapping spans count once.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """See the class."""
        return sum((end - start for start, end in self._spans), 0.0)

    def __enter__(self) -> "CompileTime":
        jax.monitoring.register_event_duration_secs_listener(self._take)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._take)

    def _take(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Add the span that ends now, merged with earlier spans that it overlaps."""
        if not event.startswith(EVENTS):
            return
        end = time.perf_counter()
        start = end - duration_secs
        while self._spans and self._spans[-1][1] > start:
            start = min(start, self._spans.pop()[0])
        self._spans.append((start, end))
