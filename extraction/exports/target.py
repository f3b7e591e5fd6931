"""The interface of an export's target.

A target is a frozen dataclass. Its fields are the target's options: keyword arguments of `export`
and flags of the command. `option` makes such a field, with its default and its flag.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol

from extraction.errors import StoreError
from extraction.exports.run_rows import RunRows


class Target(Protocol):
    """A form that a run can be exported in.

    Attributes:
        dtypes: dtypes that its activations may have; float32 is always one.
        needs: packages that have to be installed for it.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    dtypes: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]

    def write(self, run: RunRows, place: Path) -> list[str]:
        """Write the export, a file or a folder, to `place`, where nothing exists yet.

        The parent folder is temporary: it is removed afterwards with everything else in it.

        Returns:
            Notes for the user, a sentence each.

        Raises:
            StoreError: the run does not fit into this form; the message says what would be right.
        """
        ...


def option(default: Any, help_text: str, **flag: Any) -> Any:
    """Return a field of a target.

    Args:
        default: default value; `dataclasses.MISSING` if the user has to give one.
        help_text: for the command's --help.
        flag: further arguments of `ArgumentParser.add_argument`.
    """
    return dataclasses.field(default=default, metadata={"flag": {"help": help_text, **flag}})


def check_count(name: str, number: Any) -> None:
    """Refuse anything but a whole number from 1.

    Raises:
        StoreError: it is something else.
    """
    if type(number) is not int or number < 1:
        raise StoreError(f"{name} must be a whole number from 1, not {number!r}")
