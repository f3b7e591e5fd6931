"""What a target of an export offers.

A target is a frozen dataclass: its fields are the target's options, those of `export` and the flags
of the command. `option` gives a field its default and its flag.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol

from extraction.errors import StoreError
from extraction.exports.run_rows import RunRows


class Target(Protocol):
    """A form that a run is exported in.

    Attributes:
        dtypes: that activations may have there; float32 is always among them.
        needs: packages that have to be installed for it.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    dtypes: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]

    def write(self, run: RunRows, place: Path) -> list[str]:
        """Writes the export, a file or a folder, to `place`, where nothing is yet.

        The folder around it is the export's own, and is taken away afterwards with all else in it.

        Returns:
            What the user should know of it, a sentence each.

        Raises:
            StoreError: the run does not fit into this form; says what would be right.
        """
        ...


def option(default: Any, help_text: str, **flag: Any) -> Any:
    """A field of a target.

    Args:
        default: `dataclasses.MISSING` if the user has to give it.
        help_text: for the command's --help.
        flag: further arguments of `ArgumentParser.add_argument`.
    """
    return dataclasses.field(default=default, metadata={"flag": {"help": help_text, **flag}})


def check_count(name: str, number: Any) -> None:
    """Refuses what is no whole number from 1.

    Raises:
        StoreError: it is none.
    """
    if type(number) is not int or number < 1:
        raise StoreError(f"{name} must be a whole number from 1, not {number!r}")
