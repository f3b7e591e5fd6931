"""YAML files as frozen dataclasses, read strictly by the types of the fields.

Refused are unknown fields (the message names the nearest known one), fields that appear twice,
values of another type than the field's, control characters, aliases and tags. YAML reads `yes`,
`8:30` and `1_000` as other types than text; such a value is refused for a text, not converted back.
"""

import dataclasses
import difflib
import re
import typing
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from extraction.errors import UnsafeFileError
from extraction.storage.regular_files import open_regular
from inference.errors import InputError
from inference.settings.fields import checked, shown, type_hints, without_none

T = TypeVar("T")

LARGEST = 128 * 1024
"""Most bytes of a file: a hundred times what a run needs, and parsed in seconds."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
"""Numbers such as 1e-3, which YAML 1.1 reads as text and YAML 1.2 as numbers."""


class _Loader(yaml.SafeLoader):
    """A YAML loader without dates, which are read as text, and without duplicate fields."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names[key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} appears twice", key.start_mark
                )
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases, since a few lines of them expand to more than any memory holds."""
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
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789"))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        InputError: the file cannot be read, is too large, or is no plain YAML.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(LARGEST + 1) or b""
        if len(content) > LARGEST:
            raise InputError(f"{path} has more than {LARGEST // 1024} KiB, so it holds no settings")
        return yaml.load(str(content, "utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, UnsafeFileError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no YAML: {error}") from None


def build(kind: type[T], value: Any, where: str = "") -> T:
    """Return a dataclass made from a mapping of its fields.

    Args:
        kind: the dataclass.
        value: the mapping, as parsed from a file.
        where: path of fields to the value, with dots, for messages.

    Raises:
        InputError: a field is unknown, missing, of a wrong type, or the dataclass refuses it.
    """
    at = f"{where}: " if where else ""
    given = field_values(kind, value, where)
    missing = [
        field.name
        for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        if field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{at}{' and '.join(missing)} must be given")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{at}{error}") from None


def field_values(kind: type, value: Any, where: str = "") -> dict[str, Any]:
    """Return the fields of a dataclass that a mapping holds, each checked.

    Args:
        kind: the dataclass.
        value: the mapping, as parsed from a file.
        where: path of fields to the value, with dots, for messages.

    Raises:
        InputError: a field is unknown or of a wrong type.
    """
    at = f"{where}: " if where else ""
    if not isinstance(value, dict):
        raise InputError(f"{at}fields are needed here, not {shown(value)}")
    hints = type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name in value:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise InputError(f"{at}there is no field {shown(name)}; {hint}")
    return {
        name: _checked(hints[name], content, f"{where}.{name}" if where else name)
        for name, content in value.items()
    }


def _checked(hint: Any, value: Any, where: str) -> Any:
    """Return a value converted to the type of its field; see `build` for errors."""
    inner, optional = without_none(hint)
    if dataclasses.is_dataclass(inner):
        return None if value is None and optional else build(typing.cast(type, inner), value, where)
    entries = typing.get_args(inner) if typing.get_origin(inner) is list else ()
    if entries and dataclasses.is_dataclass(entries[0]):
        if not isinstance(value, list) or not value:
            raise InputError(f"{where} must be a list with at least one entry, not {shown(value)}")
        kind = typing.cast(type, entries[0])
        return [build(kind, item, f"{where}[{i}]") for i, item in enumerate(value)]
    value = checked(hint, value, where)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and CONTROL.search(item):
            raise InputError(f"{where}: {shown(item)} holds a control character")
        if isinstance(value, list) and isinstance(item, str) and item[:1] in ("-", ""):
            raise InputError(f"{where}: {shown(item)} must not be empty or begin with -")
    return value
