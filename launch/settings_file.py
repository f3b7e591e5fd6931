"""YAML to frozen dataclasses, strictly: the fields' types say what a file may hold.

Refused are unknown fields (the nearest known one is named), fields that stand twice, values of
another type than the field's, control characters, and YAML tags. YAML reads `yes`, `8:30` and
`1_000` as something else than text; such a value is never turned back silently.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from extraction.errors import UnsafeFileError
from extraction.storage.regular_files import open_regular
from inference.errors import InputError

T = TypeVar("T")

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class _Loader(yaml.SafeLoader):
    """Without dates, which are text here, and without fields that stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names[key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses aliases: a few lines of them stand for more than any memory holds."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, f"*{event.anchor}: write the value out again", event.start_mark
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: it cannot be read, or is no plain YAML.
    """
    try:
        with open_regular(path) as stream:
            return yaml.load(str(stream.readall(), "utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, UnsafeFileError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is no YAML: {error}") from None


def build(kind: type[T], value: Any, where: str = "") -> T:
    """A dataclass from a mapping of its fields.

    Args:
        kind: the dataclass.
        value: what the file holds there.
        where: names of the fields that lead there, for messages.

    Raises:
        InputError: a field is unknown, missing, of a wrong type, or the dataclass refuses it.
    """
    at = f"{where}: " if where else ""
    if not isinstance(value, dict):
        raise InputError(f"{at}fields are needed here, not {shown(value)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise InputError(f"{at}there is no field {name!r}; {hint}")
    given = {
        name: _checked(hints[name], content, f"{where}.{name}" if where else name)
        for name, content in value.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{at}{' and '.join(missing)} must be given")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{at}{error}") from None


def _checked(hint: Any, value: Any, where: str) -> Any:
    """A value, if it is of a type."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        choices = typing.get_args(hint)
        if value is None and type(None) in choices:
            return None
        (hint,) = (choice for choice in choices if choice is not type(None))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is typing.Literal:
        known = typing.get_args(hint)
        if value not in known or isinstance(value, bool):
            raise InputError(f"{where}: one of {', '.join(known)} is needed, not {shown(value)}")
        return value
    if typing.get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            raise InputError(f"{where}: a list is needed, such as [a, b], not {shown(value)}")
        (inner,) = typing.get_args(hint)
        items = [_checked(inner, item, f"{where}[{i}]") for i, item in enumerate(value)]
        for item in items:
            if isinstance(item, str) and (item.startswith("-") or not item):
                raise InputError(f"{where}: {shown(item)} would be read as a flag, or as nothing")
        return items
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        advice = "; put it in quotes" if hint is str else ""
        if hint is float and isinstance(value, str):
            advice = "; YAML wants 1.0e-3 for 1e-3"
        raise InputError(f"{where}: {WORDS[hint]} is needed, not {shown(value)}{advice}")
    if isinstance(value, str) and CONTROL.search(value):
        raise InputError(f"{where}: {shown(value)} holds a control character")
    return value


def shown(value: Any) -> str:
    """A value for a message, on one line and not long."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
