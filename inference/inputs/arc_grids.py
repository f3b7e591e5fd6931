"""ARC grids as text and back: a table of encoders.

A grid is a rectangle of colours 0 to 9, as a tuple of rows. `encode` writes a grid for a prompt;
`decode` finds the first grid in a model's answer. For every encoder
`decode(encode(grid)) == grid`.
"""

import dataclasses
import json
import re
from collections.abc import Callable

Grid = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class GridEncoder:
    """A way to write grids.

    Attributes:
        encode: returns a grid as text, without a final line break.
        decode: returns the first grid in a text; None if there is none.
    """

    encode: Callable[[Grid], str]
    decode: Callable[[str], Grid | None]


def _first_rectangle(text: str, row_pattern: str) -> Grid | None:
    """Return the first run of lines that are rows of equal width; None if there is none."""
    grid: list[tuple[int, ...]] = []
    for line in text.splitlines():
        match = re.fullmatch(row_pattern, line.strip())
        row = tuple(int(c) for c in match[1] if c.isdigit()) if match else ()
        if row and (not grid or len(row) == len(grid[0])):
            grid.append(row)
        elif grid:
            break
    return tuple(grid) or None


def _encode_digits(grid: Grid) -> str:
    return "\n".join("".join(map(str, row)) for row in grid)


def _decode_digits(text: str) -> Grid | None:
    return _first_rectangle(text, r"([0-9]+)")


def _encode_spaced(grid: Grid) -> str:
    return "\n".join(" ".join(map(str, row)) for row in grid)


def _decode_spaced(text: str) -> Grid | None:
    return _first_rectangle(text, r"([0-9](?: [0-9])*)")


def _encode_shaped(grid: Grid) -> str:
    return f"{len(grid)}x{len(grid[0])}\n{_encode_digits(grid)}"


def _decode_shaped(text: str) -> Grid | None:
    for header in re.finditer(r"^[ \t]*([0-9]+)x([0-9]+)[ \t\r]*$", text, re.MULTILINE):
        grid = _decode_digits(text[header.end() :])
        if grid and (str(len(grid)), str(len(grid[0]))) == (header[1], header[2]):
            return grid
    return None


def _encode_numbered(grid: Grid) -> str:
    return "\n".join(f"{i} {''.join(map(str, row))}" for i, row in enumerate(grid, start=1))


def _decode_numbered(text: str) -> Grid | None:
    return _first_rectangle(text, r"[0-9]+ ([0-9]+)")


def _encode_json(grid: Grid) -> str:
    return json.dumps(grid, separators=(",", ":"))


def _decode_json(text: str) -> Grid | None:
    for match in re.finditer(r"\[\s*\[[0-9,\s]*\](?:\s*,\s*\[[0-9,\s]*\])*\s*\]", text):
        try:
            grid = tuple(tuple(row) for row in json.loads(match[0]))
        except ValueError:  # not JSON, or a number of thousands of digits
            continue
        if is_grid(grid):
            return grid
    return None


GRID_ENCODERS: dict[str, GridEncoder] = {
    "digits": GridEncoder(_encode_digits, _decode_digits),  # 012\n345
    "spaced": GridEncoder(_encode_spaced, _decode_spaced),  # 0 1 2\n3 4 5
    "shaped": GridEncoder(_encode_shaped, _decode_shaped),  # 2x3\n012\n345
    "numbered": GridEncoder(_encode_numbered, _decode_numbered),  # 1 012\n2 345
    "json": GridEncoder(_encode_json, _decode_json),  # [[0,1,2],[3,4,5]]
}


def is_grid(value: object) -> bool:
    """Return whether a value is a non-empty rectangle of whole numbers from 0 to 9."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(row, list | tuple) and len(row) > 0 for row in value)
        and len({len(row) for row in value}) == 1
        and all(type(cell) is int and 0 <= cell <= 9 for row in value for cell in row)
    )
