"""A page of a run, taken apart by the standard library's parser, which also checks its nesting."""

import dataclasses
from collections.abc import Iterator
from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "input", "rect", "line", "path", "circle"}
NOT_TEXT = {"style", "script"}


@dataclasses.dataclass
class Node:
    """An element."""

    name: str
    attributes: dict[str, str | None]
    children: "list[Node | str]" = dataclasses.field(default_factory=list)

    def nodes(self, name: str | None = None, **attributes: str) -> "Iterator[Node]":
        """All elements inside, in their order, of this name and these attributes."""
        for child in self.children:
            if isinstance(child, Node):
                wanted = {key.rstrip("_").replace("_", "-"): v for key, v in attributes.items()}
                if name in (None, child.name) and wanted.items() <= child.attributes.items():
                    yield child
                yield from child.nodes(name, **attributes)

    def one(self, name: str | None = None, **attributes: str) -> "Node":
        """The only one of them."""
        (found,) = self.nodes(name, **attributes)
        return found

    @property
    def text(self) -> str:
        if self.name in NOT_TEXT:
            return ""
        inside = "".join(c if isinstance(c, str) else c.text for c in self.children)
        return f"\n{inside}" if self.name == "div" else inside


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Node("document", {})
        self._open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID, tag
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self._open.pop().name == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self._open[-1].children.append(data)

    def close(self):
        super().close()
        assert self._open == [self.root], "an element is not closed"


def parse(page: bytes) -> Node:
    """The document; raises AssertionError where an element is not closed in its turn."""
    parser = _Parser()
    parser.feed(page.decode())
    parser.close()
    return parser.root


def table(page: Node, caption: str) -> dict[str, dict[str, str]]:
    """A table's cells by the text of a row's first cell and the title of the column."""
    return {cells[columns[0]]: cells for columns, cells in _rows(page, caption)}


def rows_of(page: Node, caption: str) -> list[dict[str, str]]:
    """The same for tables whose first cells are not unique."""
    return [cells for _, cells in _rows(page, caption)]


def _rows(page: Node, caption: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    found = page.one("table", aria_label=caption)
    columns = [cell.text for cell in found.one("thead").nodes("th")]
    for row in found.one("tbody").nodes("tr"):
        cells = [cell.text for cell in row.children if isinstance(cell, Node)]
        yield columns, dict(zip(columns, cells, strict=True))


def pairs(page: Node, caption: str) -> dict[str, str]:
    """A table of names and values."""
    rows = page.one("table", aria_label=caption).nodes("tr")
    return {row.one("th").text: row.one("td").text for row in rows}


def real(text: str) -> float:
    """A number with separators."""
    return float(text.replace(",", ""))


def whole(text: str) -> int:
    """A whole number with separators."""
    return int(text.replace(",", ""))
