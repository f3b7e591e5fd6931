"""How runs, datasets and rows look in a notebook: small tables, in which no text is markup."""

from collections.abc import Iterable, Mapping, Sequence

from extraction.report.markup import Html, element, foreign, joined

ROWS_SHOWN = 8
"""Most rows of a table."""


def summary(title: str, facts: Mapping[str, str]) -> str:
    """Return a title and a table of facts as HTML."""
    lines = [
        element("tr", element("th", name, style="text-align:left"), element("td", foreign(value)))
        for name, value in facts.items()
    ]
    return str(element("div", element("strong", title), element("table", *lines)))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], total: int) -> str:
    """Return a table of the first rows as HTML, with the number of all rows.

    Args:
        title: what it shows.
        columns: names of the columns.
        rows: texts of the rows; the first of them are shown.
        total: number of all rows.
    """
    shown = [row for row, _ in zip(rows, range(ROWS_SHOWN), strict=False)]
    head = element("tr", *(element("th", column) for column in columns))
    lines = [element("tr", *(element("td", foreign(cell)) for cell in row)) for row in shown]
    more = total - len(shown)
    below: Html = element("div", f"and {more:,} more rows") if more else joined()
    return str(element("div", element("strong", title), element("table", head, *lines), below))
