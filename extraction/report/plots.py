"""Plots as SVG: histograms of norms, and norms over the blocks of the model.

Colours come from the page's classes, so that light, dark and print have their own. Each plot has a
title and a description for those who do not see it; tables beside it hold the same numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from extraction.report.axes import Axis, axis_over
from extraction.report.contents import HookPointContents
from extraction.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    svg,
    x_axis,
    y_axis,
)
from extraction.report.markup import Html, count, element, number
from extraction.run.statistics import BINS_PER_OCTAVE, ZERO, RowStatistics, bin_number

MOST_BARS = 64


class Bar(NamedTuple):
    """Rows whose norms are from `low` up to `high`."""

    low: float
    high: float
    rows: int


def bars_of(statistics: RowStatistics) -> list[Bar]:
    """Return the histogram of norms above 0, adjacent bins added up where there are very many."""
    bins = sorted((bin_number(n), rows) for n, rows in statistics.norms.items() if n != ZERO)
    if not bins:
        return []
    step = math.ceil((bins[-1][0] - bins[0][0] + 1) / MOST_BARS)
    sums: dict[int, int] = {}
    for place, rows in bins:
        sums[place // step] = sums.get(place // step, 0) + rows
    return [Bar(_edge(k * step), _edge((k + 1) * step), rows) for k, rows in sums.items() if rows]


def _edge(place: int) -> float:
    """Return the lower edge of a bin of norms, within the range of float64."""
    return 2.0 ** min(max(place / BINS_PER_OCTAVE, -1020.0), 1020.0)


def shared_range(hook_points: Sequence[HookPointContents]) -> tuple[float, float]:
    """Return the lowest and highest norm of the histograms of some hook points."""
    bars = [bar for hook in hook_points for bar in bars_of(hook.statistics)]
    return (min(b.low for b in bars), max(b.high for b in bars)) if bars else (1.0, 2.0)


def histogram(hook: HookPointContents, low: float, high: float) -> Html:
    """Return the histogram of a hook point's norms, both axes logarithmic.

    Args:
        hook: the hook point.
        low: lowest norm of the axis.
        high: highest norm of the axis.
    """
    bars = bars_of(hook.statistics)
    x = Axis(low=low, high=max(high, low * 1.1), start=LEFT, end=WIDTH - RIGHT, log=True)
    most = max((bar.rows for bar in bars), default=1)
    y = Axis(low=0.6, high=max(most * 1.4, 10.0), start=HEIGHT - BOTTOM, end=TOP, log=True)
    drawn = [_bar(bar, x, y, hook.large.limit) for bar in bars]
    median, limit = hook.statistics.median_norm(), hook.large.limit
    lines = [
        _marker(x.pixel(value), name)
        for value, name in ((median, "median"), (limit, "limit"))
        if low <= value <= high
    ]
    large = count(hook.large.rows)
    description = (
        f"{count(hook.finite)} rows; median norm {number(median)}; {large} rows above"
        f" {number(limit)}; norms from {number(bars[0].low)} to {number(bars[-1].high)}"
        if bars
        else "no rows with a norm above 0"
    )
    return svg(
        f"Histogram of the norms of {hook.name}",
        description,
        *y_axis(y, "rows, log scale", whole=True),
        *x_axis(x, "norm of a row, log scale"),
        *drawn,
        *lines,
    )


def _bar(bar: Bar, x: Axis, y: Axis, limit: float) -> Html:
    """Return a bar; the part of it above the limit of large norms has the colour of those."""
    left, top = x.pixel(bar.low), y.pixel(bar.rows)
    right = max(left + 1, x.pixel(bar.high) - 0.6)
    edge = min(max(x.pixel(limit), left), right)
    parts = [(left, edge, "usual"), (edge, right, "large")]
    return element(
        "g",
        element("title", f"norms {number(bar.low)} to {number(bar.high)}: {count(bar.rows)} rows"),
        *(
            element(
                "rect",
                x=round(start, 2),
                y=round(top, 2),
                width=round(end - start, 2),
                height=round(y.start - top, 2),
                class_=name,
            )
            for start, end, name in parts
            if end > start
        ),
        class_="bar",
    )


def _marker(x: float, name: str) -> Html:
    at = round(x, 2)
    return element("line", x1=at, x2=at, y1=TOP - 8, y2=HEIGHT - BOTTOM, class_=f"marker {name}")


class Series(NamedTuple):
    """Values of some blocks; `name` and `title` are those of `SERIES`."""

    name: str
    title: str
    points: Sequence[tuple[int, float]]


class SeriesKind(NamedTuple):
    """A number of each hook point that is drawn over the blocks; `name` is a class of the page."""

    name: str
    title: str
    value_of: Callable[[HookPointContents], float | None]


SERIES = (
    SeriesKind("mean", "mean norm", lambda hook: hook.large.mean_norm),
    SeriesKind(
        "without", "mean norm without large rows", lambda hook: hook.large.mean_norm_without
    ),
    SeriesKind("median", "median norm", lambda hook: hook.statistics.median_norm()),
)


def series_of(hook_points: Sequence[HookPointContents]) -> list[Series]:
    """Return the norms of hook points of one kind, by the number of the block."""
    known = [(h.layer, h) for h in hook_points if h.layer is not None and h.finite]
    known.sort(key=lambda entry: entry[0])
    found = []
    for kind in SERIES:
        points = [(layer, kind.value_of(hook)) for layer, hook in known]
        points = [(layer, value) for layer, value in points if value is not None]
        if points:
            found.append(Series(kind.name, kind.title, points))
    return found


def over_layers(kind: str, series: Sequence[Series], layers: int) -> Html:
    """Return the plot of norms over the blocks.

    Args:
        kind: name of the hook points, with `{i}` for the number of the block.
        series: at least one.
        layers: number of blocks of the model.
    """
    x = Axis(low=0, high=max(1, layers - 1), start=LEFT + 8, end=WIDTH - RIGHT - 8)
    y = axis_over([v for one in series for _, v in one.points], HEIGHT - BOTTOM, TOP)
    drawn = [
        element(
            "g",
            element(
                "path",
                d="M" + "L".join(f"{x.pixel(at):.1f} {y.pixel(v):.1f}" for at, v in one.points),
            ),
            *(
                element(
                    "g",
                    element("title", f"block {at}, {one.title}: {number(value)}"),
                    _mark(one.name, x.pixel(at), y.pixel(value)),
                )
                for at, value in one.points
            ),
            class_=f"series {one.name}",
        )
        for one in series
    ]
    described = "; ".join(
        f"{one.title} from {number(min(v for _, v in one.points))}"
        f" to {number(max(v for _, v in one.points))}"
        for one in series
    )
    return svg(
        f"Norms of {kind} over the blocks",
        described,
        *y_axis(y, "norm, log scale" if y.log else "norm"),
        *x_axis(x, "block", whole=True),
        *drawn,
    )


def _mark(name: str, x: float, y: float) -> Html:
    """Return a mark whose shape tells the series apart without its colour."""
    if name == "median":
        return element("rect", x=round(x - 3, 2), y=round(y - 3, 2), width=6, height=6)
    return element("circle", cx=round(x, 2), cy=round(y, 2), r=3.5 if name == "mean" else 2.5)
