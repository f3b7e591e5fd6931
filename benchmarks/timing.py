"""Wall-clock medians of works that are measured in turn, so that a drifting machine is fair."""

import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

Name = TypeVar("Name", str, int)


def measure_in_turn(works: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, float]:
    """Median seconds of each, one after the other in every round, the first round not counted."""
    seconds: dict[Name, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def cpu_name() -> str:
    """Return the processor's name and its widest vector instructions, as Linux tells them."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    (name, *_) = re.findall(r"model name\s*: (.*)", text) or ["unknown processor"]
    widest = [flag for flag in ("avx512f", "avx2") if f" {flag} " in text]
    return f"{name} ({widest[0] if widest else 'no AVX2'})"
