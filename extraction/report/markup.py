"""HTML and SVG elements whose texts cannot become markup.

A text is `Html` only if `element` made it. Any other `str` is escaped, and characters that would
not show, such as NUL and marks of writing direction, are shown by their codes. `foreign` also cuts
a text of a run, which may be very long, and isolates its direction from that of the page.
"""

import html
import math
import re

from extraction.printable import printable

VOID = {"br", "wbr", "meta", "input", "rect", "line", "path", "circle"}
"""Elements without content; those of SVG are closed by `/>`."""

UNBROKEN = 21
"""Most characters of a text that stays on one line where there is room for its longest word."""

LONGEST_TOKEN = 60
"""Most characters of a token that are shown."""

LONGEST = 300
"""Most characters of a run's text where nothing else is said."""


class Html(str):
    """Markup that may stand in a page as it is."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | bool | None) -> Html:
    """Return an element.

    Args:
        name: name of the element.
        children: `Html` as it is; any other text escaped.
        attributes: values by name; `_` becomes `-`, one at the end (`class_`) is dropped. None and
            False leave an attribute out, True gives it no value.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            parts.append(f'{key}="{html.escape(printable(shown))}"')
    opening = " ".join(parts)
    if name in VOID:
        return Html(f"<{opening}>" if name in {"br", "wbr", "meta", "input"} else f"<{opening}/>")
    return Html(f"<{opening}>{joined(*children)}</{name}>")


def joined(*children: str) -> Html:
    """Return elements and texts one after the other."""
    return Html(
        "".join(child if isinstance(child, Html) else _escaped(child) for child in children)
    )


def _escaped(text: str) -> str:
    """Return a text without markup, and without characters that do not show, but line breaks."""
    return html.escape("\n".join(map(printable, text.split("\n"))))


def foreign(text: str, most: int = LONGEST) -> Html:
    """Return a text of the run as one line; a long one may be broken after `/` and `_`.

    Args:
        text: any text.
        most: characters to show; a longer text ends with its length.
    """
    shown = printable(cut(text, most))
    first, *rest = re.split("(?<=[/_])", shown) if len(shown) > UNBROKEN else [shown]
    parts = [first, *(part for piece in rest if piece for part in (element("wbr"), piece))]
    return joined(*parts) if shown.isascii() else element("bdi", *parts)


def token(text: str) -> Html:
    """Return a token's text on one line, for an element that keeps spaces; breaks are signs."""
    shown = token_signs(text)
    return joined(shown) if shown.isascii() else element("bdi", shown)


def token_signs(text: str) -> str:
    """Return a token's text with signs for line breaks and tabs, cut and printable."""
    signs = text.replace("\n", "⏎").replace("\t", "⇥")
    return printable(cut(signs, LONGEST_TOKEN))


def foreign_lines(text: str, most: int) -> Html:
    """Return a text of the run with its line breaks, for an element that keeps spaces.

    Args:
        text: any text.
        most: characters to show; a longer text ends with its length.
    """
    return element("bdi", cut(text, most).replace("\r\n", "\n"))


def cut(text: str, most: int) -> str:
    """Return the text, or its beginning and its length."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def count(number: int) -> str:
    """Return a whole number with separators."""
    return f"{number:,}"


def number(value: float | None) -> str:
    """Return a number with four significant digits, all of its whole part, or a dash."""
    if value is None:
        return "–"
    magnitude = abs(float(f"{value:.3e}"))
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1000 <= magnitude < 1e7:
        return f"{value:,.0f}"
    return f"{value:#.4g}" if 1e-4 <= magnitude < 1000 else f"{value:.3e}"


def size(bytes_: float) -> str:
    """Return a number of bytes in decimal units."""
    if bytes_ < 1000:
        return f"{int(bytes_)} bytes"
    for unit in ("kB", "MB", "GB"):
        bytes_ /= 1000
        if bytes_ < 999.5:
            return f"{bytes_:.3g} {unit}"
    return f"{bytes_ / 1000:.4g} TB"
