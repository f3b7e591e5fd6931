"""Settings: fields of frozen dataclasses, checked against their types and limits.

The same checks apply to flags, to YAML files and to settings made in Python.
"""

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from extraction.setting_names import setting
from inference.errors import InputError

MAX_NUMBER = 2**31 - 1
"""Largest value of a setting without a limit of its own: the largest int32."""

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

Decides = Literal["rows", "files", "resolved", "nothing"]
"""What a setting decides, and so whether it may change when a run is resumed.

`rows`: it changes the rows. `files`: it changes how rows are divided into files and stored. A
resumed run must have the same value of both kinds. `resolved`: the run records the result of the
setting (digests of samples and weights, hook points, dtype), and the result must be the same.
`nothing`: it may change.
"""


def flag(
    help: str,
    *,
    decides: Decides,
    default: Any = dataclasses.MISSING,
    default_factory: Callable[[], Any] | None = None,
    example: object = None,
    least: int | float | None = None,
    most: int | float = MAX_NUMBER,
    may_be_empty: bool = False,
    positional: bool = False,
) -> Any:
    """Return a dataclass field for one setting.

    Args:
        help: text for `--help`.
        decides: what the setting decides, see `Decides`.
        default: default value; without it the setting must be given.
        default_factory: returns the default value, if that is a list.
        example: a value as the command line takes it, for `--help`; None: the default.
        least: smallest allowed number.
        most: largest allowed number.
        may_be_empty: whether an empty text is allowed.
        positional: whether the command line takes the value without the setting's name.
    """
    metadata = {
        "help": help,
        "decides": decides,
        "example": example,
        "least": least,
        "most": most,
        "may_be_empty": may_be_empty,
        "positional": positional,
    }
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings whose types, limits and combinations are checked when they are made.

    A subclass adds fields by `flag`, names its group in `--help`, and extends `_check`.
    """

    group: ClassVar[str] = ""

    def __post_init__(self):
        hints = type_hints(type(self))
        for entry in dataclasses.fields(self):
            name = setting(entry.name)
            value = checked(hints[entry.name], getattr(self, entry.name), name)
            object.__setattr__(self, entry.name, value)
            _check_limits(value, name, entry.metadata)
        self._check()

    def _check(self) -> None:
        """Check combinations of settings.

        Raises:
            InputError: settings exclude each other.
        """


@functools.cache
def type_hints(kind: type) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields."""
    return typing.get_type_hints(kind)


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return a type without `None`, and whether it allows `None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (kind,) = (choice for choice in typing.get_args(hint) if choice is not type(None))
        return kind, True
    return hint, False


def checked(hint: Any, value: Any, where: str) -> Any:
    """Return a value converted to its type: `3` for a float becomes `3.0`, a path becomes text.

    Args:
        hint: `str`, `int`, `float`, `bool`, a `Literal`, a list of one of these, or None beside it.
        value: value of the setting.
        where: name of the setting, for messages.

    Raises:
        InputError: the value has another type.
    """
    kind, optional = without_none(hint)
    if value is None and optional:
        return None
    if typing.get_origin(kind) is Literal:
        known = typing.get_args(kind)
        if not isinstance(value, str) or value not in known:
            raise InputError(f"{where} must be one of {', '.join(known)}, not {shown(value)}")
        return value
    if typing.get_origin(kind) is list:
        if not isinstance(value, list | tuple) or not value:
            raise InputError(f"{where} must be a list, such as [a, b], not {shown(value)}")
        (inner,) = typing.get_args(kind)
        return [checked(inner, item, f"{where}[{i}]") for i, item in enumerate(value)]
    found = _as(kind, value)
    if found is None:
        advice = "; put it in quotes" if kind is str and value is not None else ""
        raise InputError(f"{where} must be {WORDS[kind]}, not {shown(value)}{advice}")
    return found


def _as(kind: type, value: Any) -> Any:
    """Return a value as a plain type; None if it has another type."""
    if kind is str:
        return os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if kind is bool:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if kind is int and hasattr(value, "__index__"):  # numpy's whole numbers too
        return value.__index__()
    if kind is float and (hasattr(value, "__index__") or isinstance(value, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def _check_limits(value: Any, name: str, metadata: Mapping[str, Any]) -> None:
    values = value if isinstance(value, list) else [value]
    blank = any(isinstance(text, str) and not text.strip() for text in values)
    if blank and not metadata["may_be_empty"]:
        raise InputError(f"{name} must not be empty")
    least, most = metadata["least"], metadata["most"]
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if least is not None and not number >= least:  # also refuses NaN
            raise InputError(f"{name} must be at least {least}, not {number}")
        if not number <= most:
            raise InputError(f"{name} must be at most {most}, not {number}")


def shown(value: Any) -> str:
    """Return a value as text for a message, on one line of at most 60 characters."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
