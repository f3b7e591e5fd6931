"""How runs, datasets and rows look in a notebook: small tables, in which no text is markup."""

from collections.abc import Iterable, Mapping, Sequence

from extraction.report.markup import Html, element, foreign, joined

ROWS_SHOWN = 8
"""Most rows of a table."""

FACTS_SHOWN = 12
"""Most facts of a summary."""


def summary(title: str, facts: Mapping[str, str]) -> str:
    """Return a title and a table of the first facts as HTML, with the number of further ones."""
    shown = list(facts.items())[:FACTS_SHOWN]
    lines = [
        element("tr", element("th", foreign(name)), element("td", foreign(value)))
        for name, value in shown
    ]
    return _titled(title, element("table", *lines), len(facts) - len(shown), "lines")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], total: int) -> str:
    """Return a table of the first rows as HTML, with the number of all rows.

    Args:
        title: what it shows.
        columns: names of the columns.
        rows: texts of the rows; the first of them are shown.
        total: number of all rows.
    """
    shown = [row for row, _ in zip(rows, range(ROWS_SHOWN), strict=False)]
    head = element("tr", *(element("th", foreign(column)) for column in columns))
    lines = [element("tr", *(element("td", foreign(cell)) for cell in row)) for row in shown]
    return _titled(title, element("table", head, *lines), total - len(shown), "rows")


def _titled(title: str, content: Html, more: int, of: str) -> str:
    """Return a table with its title, and how many more lines or rows there are."""
    below = element("div", f"and {more:,} more {of}") if more else joined()
    return str(element("div", element("strong", foreign(title)), content, below))
