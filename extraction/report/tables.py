"""Tables of the page."""

from collections.abc import Iterable, Sequence

from extraction.report.markup import Html, element, foreign


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    texts: int = 1,
    lists: int = 0,
) -> Html:
    """Return a table whose first columns are texts and whose others are numbers, or lists of them.

    Args:
        caption: what it holds, for those who do not see where it stands.
        columns: titles of the columns.
        rows: cells of each row.
        texts: number of columns of texts; the first one names the row.
        lists: number of columns at the end that hold several values.
    """
    numbers = len(columns) - texts - lists
    kinds = [None] * texts + ["n"] * numbers + ["list"] * lists
    head = [
        element("th", title, scope="col", class_=kind)
        for title, kind in zip(columns, kinds, strict=True)
    ]
    body = [
        element(
            "tr",
            *(
                element("th", cell, scope="row") if n == 0 else element("td", cell, class_=kind)
                for n, (cell, kind) in enumerate(zip(cells, kinds, strict=True))
            ),
        )
        for cells in rows
    ]
    whole = element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *body),
        aria_label=caption,
    )
    return element("div", whole, class_="wide", role="group", aria_label=caption, tabindex=0)


def pairs(caption: str, entries: Iterable[tuple[str, str]]) -> Html:
    """Return a table of names and values."""
    rows = [
        element("tr", element("th", foreign(name, 80), scope="row"), element("td", value))
        for name, value in entries
    ]
    return element("table", element("tbody", *rows), class_="pairs", aria_label=caption)


def details(summary: str, *content: Html) -> Html:
    """Return content that is shown when its summary is opened."""
    return element("details", element("summary", summary), *content)
