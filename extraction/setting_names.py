"""Names of settings in messages: argument of a function, or flag of a command.

    raise StoreError(f"{setting('dtype', dtype)} is none of float32, bfloat16")

says `dtype='int8' is none of ...` to a caller of a function, and `--dtype int8 is none of
...` to a user of a command. Commands run within `with flags_named(): ...`.
"""

import contextlib
from collections.abc import Iterator, Mapping

_as_flags = False
_renamed: Mapping[str, str] = {}


def setting(name: str, *values: object) -> str:
    """Return the name of a setting, with its values if they are given, as the user has to write it.

    Args:
        name: name of the field or argument, such as `save_every_n_samples`.
        values: one value, or several for a setting that takes a list.
    """
    if _as_flags:
        return " ".join([f"--{name}", *map(str, values)])
    name = _renamed.get(name, name)
    if not values:
        return name
    return f"{name}={values[0]!r}" if len(values) == 1 else f"{name}={list(values)!r}"


@contextlib.contextmanager
def flags_named() -> Iterator[None]:
    """Name settings as flags within a `with` block."""
    global _as_flags
    before, _as_flags = _as_flags, True
    try:
        yield
    finally:
        _as_flags = before


@contextlib.contextmanager
def arguments_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Name settings, within a `with` block, as a function's differently named arguments.

    Args:
        names: names of the arguments, by names of the settings.
    """
    global _renamed
    before, _renamed = _renamed, names
    try:
        yield
    finally:
        _renamed = before
