"""Axes of plots: which pixel a value has, and which values get a label."""

import dataclasses
import math
from collections.abc import Sequence

STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic axis.

    Attributes:
        low: value at `start`.
        high: value at `end`, above `low`.
        start: pixel of `low`.
        end: pixel of `high`.
        log: whether equal ratios, and not differences, have equal lengths; `low` is above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def pixel(self, value: float) -> float:
        """Return the pixel of a value, between `start` and `end`."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Return round values on the axis, at most about so many."""
        ticks = log_ticks if self.log else linear_ticks
        return ticks(self.low, self.high, most)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in STEPS if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return powers of ten, every n-th where there are many; 1, 2, 5 steps where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [
        factor * 10.0**power
        for power in (range(first, last + 1) if last - first <= most else ())
        for factor in STEPS[:3]
        if low <= factor * 10.0**power <= high
    ]
    if 2 < len(fine) <= most:
        return fine
    if high / low < 10.0:
        return linear_ticks(low, high, most)
    every = max(1, math.ceil((last - first) / most))
    return [10.0**p for p in range(first, last + 1, every) if low <= 10.0**p <= high]


def axis_over(values: Sequence[float], start: float, end: float) -> Axis:
    """Return an axis for some positive values: from 0, or logarithmic where they differ much.

    Args:
        values: at least one, finite.
        start: pixel of the low end.
        end: pixel of the high end.
    """
    positive = [value for value in values if value > 0]
    least, most = min(positive, default=1.0), max(positive, default=1.0)
    if most / least > LOG_FROM:
        return Axis(low=least / 1.5, high=most * 1.5, start=start, end=end, log=True)
    return Axis(low=0.0, high=most * 1.08, start=start, end=end)


LOG_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


def label(value: float) -> str:
    """Return a short label: 0.5, 20, 5k, 2M, 1e-7."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if factor <= value < 1e15:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.3g}"
