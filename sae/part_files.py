"""The files of a pass over a run's rows in parts: what each process found.

Each process reads every n-th file of the rows and writes its file below the output. Whichever finds
the files of all parts adds them up; if two end at the same time, both write the same results.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from extraction.documents import read_json
from extraction.errors import StoreError, first_line
from extraction.setting_names import setting
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from sae.files import disk_errors_told
from tensor_files.safetensors_header import LENGTH_BYTES, HeaderError, header_bytes, parse_header

MOST_BYTES = 1 << 36
"""Most bytes of a part's file."""

Found = TypeVar("Found")


def part_name(folder: str, part: tuple[int, int]) -> str:
    """Return the name of a part's file; `part` is its number from 0, and the number of parts."""
    return f"{folder}/{part[0]}_of_{part[1]}.safetensors"


def save_part_file(
    storage: Storage,
    name: str,
    arrays: Mapping[str, np.ndarray],
    texts: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Write the file of a part.

    Args:
        storage: the output.
        name: name of the file.
        arrays: what was found.
        texts: further JSON values, by name.
        about: JSON values that must be the same when it is read.

    Raises:
        StorageUnavailableError: the disk is full, or fails.
    """
    from safetensors.numpy import save

    metadata = {key: json.dumps(value) for key, value in {**texts, "about": about}.items()}
    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    with disk_errors_told(storage, "written"):
        storage.replace(name, save(contiguous, metadata))


def load_part_file(
    storage: Storage,
    name: str,
    texts: tuple[str, ...],
    about: Mapping[str, Any],
    made: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], Found],
) -> Found:
    """Read the file of a part.

    Args:
        storage: the output.
        name: name of the file.
        texts: names of the further JSON values.
        about: JSON values that the file must have.
        made: what is made of those values and of the arrays; where they cannot be such it raises
            ValueError, KeyError, TypeError or AttributeError.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the file is damaged, or of other settings or rows.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    where = f"{storage.address}/{name}"
    data = get_at_most(storage, name, MOST_BYTES)
    wanted = json.loads(json.dumps(about))
    try:
        start = LENGTH_BYTES + header_bytes(data[:LENGTH_BYTES], len(data))
        metadata = parse_header(data[LENGTH_BYTES:start], len(data) - start).metadata
        told = {key: read_json(metadata[key]) for key in (*texts, "about")}
        other = told["about"]
        if other == wanted:
            return made(told, load(data))
    except (SafetensorError, HeaderError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{where} is damaged: {first_line(error)}") from None
    differing = sorted(
        key for key in wanted if not isinstance(other, dict) or other.get(key) != wanted[key]
    )
    raise StoreError(
        f"{where} is of another {', '.join(differing)}; choose another {setting('output_dir')}"
    )
