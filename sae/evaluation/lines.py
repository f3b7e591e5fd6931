"""Plots of an evaluation as SVG: metrics of a training over its rows, and densities of latents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from extraction.report.axes import Axis, axis_over
from extraction.report.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, svg, x_axis, y_axis
from extraction.report.markup import Html, count, element, number
from extraction.report.style import SERIES_COLOURS

MOST_POINTS = 240
"""Points of a line; a longer training shows the mean of neighbours."""

DASHES = 3


class Line(NamedTuple):
    """A metric of one training.

    Attributes:
        place: number of the autoencoder, which has a colour and a pattern.
        title: its name.
        points: rows and value, by rows.
    """

    place: int
    title: str
    points: Sequence[tuple[float, float]]


def line_class(place: int) -> str:
    """Return the classes of the line of an autoencoder: colour, then pattern."""
    return f"s{place % SERIES_COLOURS} d{place // SERIES_COLOURS % DASHES}"


def points_of(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return rows and values of a metric, by rows; what is no finite number is left out."""
    known = sorted(
        (line["rows"], line[name])
        for line in metrics
        if _is_number(line.get("rows")) and _is_number(line.get(name))
    )
    step = math.ceil(len(known) / MOST_POINTS) or 1
    groups = [known[start : start + step] for start in range(0, len(known), step)]
    return [
        (sum(rows for rows, _ in group) / len(group), sum(v for _, v in group) / len(group))
        for group in groups
    ]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e300  # false for NaN


def over_rows(title: str, axis_title: str, lines: Sequence[Line]) -> Html:
    """Return a metric of some trainings over the rows that they were trained on.

    Args:
        title: the metric, for those who do not see the plot.
        axis_title: title of the axis of its values.
        lines: at least one, each with points.
    """
    most = max(rows for line in lines for rows, _ in line.points)
    x = Axis(low=0, high=max(most, 1.0), start=LEFT, end=WIDTH - RIGHT)
    y = axis_over([value for line in lines for _, value in line.points], HEIGHT - BOTTOM, TOP)
    drawn = [
        element(
            "g",
            element("title", line.title),
            element(
                "path",
                d="M" + "L".join(f"{x.pixel(a):.1f} {y.pixel(b):.1f}" for a, b in line.points),
            ),
            class_=f"series {line_class(line.place)}",
        )
        for line in lines
    ]
    ends = "; ".join(f"{line.title}: {number(line.points[-1][1])}" for line in lines)
    return svg(
        f"{title} over the rows of the training",
        f"at the end {ends}",
        *y_axis(y, f"{axis_title}, log scale" if y.log else axis_title),
        *x_axis(x, "rows"),
        *drawn,
    )


def densities(name: str, bars: Sequence[tuple[float, float, int]], low: float, most: int) -> Html:
    """Return the histogram of log10 of the densities of latents.

    Args:
        name: name of the autoencoder.
        bars: from, to, latents.
        low: lowest number of the axis of densities; the highest is 0.
        most: highest number of the axis of latents.
    """
    apart = 0.03 * low  # so that the label of a tick at `low` is not below that of the other axis
    x = Axis(low=low + apart, high=0, start=LEFT, end=WIDTH - RIGHT)
    y = Axis(low=0, high=most * 1.08, start=HEIGHT - BOTTOM, end=TOP)
    drawn = [
        element(
            "g",
            element("title", f"10^{start:g} to 10^{end:g}: {count(latents)} latents"),
            element(
                "rect",
                x=round(x.pixel(start), 2),
                y=round(y.pixel(latents), 2),
                width=round(x.pixel(end) - x.pixel(start) - 0.6, 2),
                height=round(y.start - y.pixel(latents), 2),
                class_="usual",
            ),
            class_="bar",
        )
        for start, end, latents in bars
    ]
    alive = sum(latents for _, _, latents in bars)
    return svg(
        f"Densities of the latents of {name}",
        f"{count(alive)} latents that are active at least once",
        *y_axis(y, "latents"),
        *x_axis(x, "log10 of the part of rows in which a latent is active"),
        *drawn,
    )
