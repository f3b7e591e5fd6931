"""Tables that are printed row by row as they are measured, and the same numbers as JSON.

A long measurement may be killed at any time; what it has measured by then has been said.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

Row = dict[str, Any]
"""Columns by name: words, numbers, and None where there is nothing to say."""

WIDTH = 13
"""Of a column, in characters."""


class TableReport:
    """Prints to standard output, and keeps the rows.

    Args:
        about: goes before the rows in the JSON file.
        file: rewritten after every row; None: no file.
    """

    def __init__(self, about: Mapping[str, Any], file: Path | None):
        self.rows: list[Row] = []
        self._about = dict(about)
        self._file = file
        self._columns: list[str] = []

    def start(self, title: str) -> None:
        """Begins a table; the first row that can be measured brings the columns' names."""
        print(f"\n{title}", flush=True)
        self._columns = []

    def measure(self, table: str, case: Row, work: Callable[[], Row]) -> Row:
        """Prints and returns a row: the case and what `work` measures of it.

        If the device's memory does not suffice, the row holds `failure` instead. Any other error
        is raised.
        """
        try:
            row = case | work()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row = case | {"failure": "out of memory"}
        if "failure" not in row and list(row) != self._columns:
            self._columns = list(row)
            print("".join(f"{name:>{WIDTH}}" for name in row))
        print("".join(f" {_shown(value):>{WIDTH - 1}}" for value in row.values()), flush=True)
        self.rows.append({"table": table, **row})
        if self._file is not None:
            content = json.dumps(self._about | {"rows": self.rows}, indent=1)
            self._file.write_text(content + "\n", encoding="utf-8")
        return row


def _shown(value: str | int | float | None) -> str:
    """A cell: four digits that count, and no exponents."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
