"""The parts that all plots have: their size, axes and keys, as SVG."""

from extraction.report.axes import Axis, label
from extraction.report.markup import Html, element, joined

WIDTH, HEIGHT = 372, 210
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 24, 40
FONT = 12


def svg(title: str, description: str, *children: str) -> Html:
    """Return a plot.

    Args:
        title: what it shows, for those who do not see it.
        description: its numbers, for them.
        children: axes, and what is drawn.
    """
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *children,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {description}",
    )


def y_axis(axis: Axis, title: str, *, whole: bool = False) -> list[Html]:
    """Return labels and lines of the axis on the left; `whole`: of numbers from 1 only."""
    return [
        *(
            joined(
                element(
                    "line",
                    x1=LEFT,
                    x2=WIDTH - RIGHT,
                    y1=round(axis.pixel(tick), 2),
                    y2=round(axis.pixel(tick), 2),
                    class_="grid",
                ),
                _text(LEFT - 6, axis.pixel(tick) + 4, label(tick), "end"),
            )
            for tick in axis.ticks(5)
            if not whole or tick >= 1
        ),
        _text(2, 12, title, "start"),
    ]


def x_axis(axis: Axis, title: str, *, whole: bool = False) -> list[Html]:
    """Return labels and lines of the axis below; `whole`: of whole numbers only."""
    base = HEIGHT - BOTTOM
    return [
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="base"),
        *(
            joined(
                element(
                    "line",
                    x1=round(axis.pixel(tick), 2),
                    x2=round(axis.pixel(tick), 2),
                    y1=base,
                    y2=base + 4,
                    class_="base",
                ),
                _text(axis.pixel(tick), base + 16, label(tick), "middle"),
            )
            for tick in axis.ticks(6)
            if not whole or tick == int(tick)
        ),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, title, "middle"),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return element(
        "text",
        text,
        x=round(x, 2),
        y=round(y, 2),
        text_anchor=anchor,
        font_size=FONT,
    )


def key(sign: Html, title: str) -> Html:
    """Return what a sign of the plots stands for; the sign is 26 by 10 pixels."""
    drawn = element("svg", sign, viewBox="0 0 26 10", aria_hidden="true")
    return element("span", drawn, title, class_="key")
