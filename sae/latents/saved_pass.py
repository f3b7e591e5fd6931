"""The file of a pass over the rows: where it stands, and what it has found.

A process saves `pass/I_of_N.safetensors` below the output once a minute and when it is stopped.
With `--resume True` it goes on there. Whichever process finds the finished files of all parts adds
them up; if two end at the same time, both write the same results.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.documents import is_count, read_json
from extraction.errors import StoreError, first_line
from extraction.setting_names import setting
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from sae.files import disk_errors_told
from sae.latents.latent_pass import LatentPass
from tensor_files.safetensors_header import LENGTH_BYTES, HeaderError, header_bytes, parse_header

MOST_BYTES = 1 << 36
COUNTS = ("rows", "not_finite", "next_row")


def part_name(part: tuple[int, int]) -> str:
    """Return the name of a part's file."""
    return f"pass/{part[0]}_of_{part[1]}.safetensors"


def _arrays(found: LatentPass) -> dict[str, np.ndarray]:
    return {
        "active": found.active,
        "total": found.total,
        **{
            f"{name}.{field}": getattr(kept, field)
            for name, kept in (("top", found.top), ("sample", found.sample))
            for field in ("keys", "rows", "values")
        },
    }


def save_pass(
    found: LatentPass,
    next_row: int,
    storage: Storage,
    part: tuple[int, int],
    about: Mapping[str, Any],
) -> None:
    """Write a pass.

    Args:
        found: the pass.
        next_row: number of the first row of the run that it has not seen.
        storage: the output.
        part: number of the part from 0, and number of parts.
        about: JSON values that must be the same when it is read.

    Raises:
        StorageUnavailableError: the disk is full, or fails.
    """
    from safetensors.numpy import save

    found.settle()
    counts = {"rows": found.rows, "not_finite": found.not_finite, "next_row": next_row}
    texts = {"about": about, "counts": counts, "left_out": dict(found.left_out)}
    metadata = {name: json.dumps(value) for name, value in texts.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in _arrays(found).items()}
    with disk_errors_told(storage, "written"):
        storage.replace(part_name(part), save(arrays, metadata))


def load_pass(
    into: LatentPass, storage: Storage, part: tuple[int, int], about: Mapping[str, Any]
) -> int | None:
    """Read a pass, and return the number of its next row; None if there is none.

    Args:
        into: a pass without rows, with the settings of the file; it gets what the file holds.
        storage: the output.
        part: number of the part from 0, and number of parts.
        about: JSON values that the file must have.

    Raises:
        StoreError: the file is damaged, or of other settings or rows.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = part_name(part)
    where = f"{storage.address}/{name}"
    try:
        data = get_at_most(storage, name, MOST_BYTES)
    except FileNotFoundError:
        return None
    wanted = json.loads(json.dumps(about))
    try:
        start = LENGTH_BYTES + header_bytes(data[:LENGTH_BYTES], len(data))
        texts = parse_header(data[LENGTH_BYTES:start], len(data) - start).metadata
        told = {field: read_json(texts[field]) for field in ("about", "counts", "left_out")}
        counts = [told["counts"][count] for count in COUNTS]
        if not all(map(is_count, [*counts, *told["left_out"].values()])):
            raise ValueError("its counts are none")
        if told["about"] == wanted:
            _fill(into, load(data))
    except (SafetensorError, HeaderError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{where} is damaged: {first_line(error)}") from None
    other = told["about"]
    if other != wanted:
        differing = sorted(
            key for key in wanted if not isinstance(other, dict) or other.get(key) != wanted[key]
        )
        raise StoreError(
            f"{where} is of another {', '.join(differing)}; choose another {setting('output_dir')}"
        )
    into.rows, into.not_finite, next_row = counts
    into.left_out = Counter(told["left_out"])
    return next_row


def _fill(into: LatentPass, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into a pass; raise ValueError or KeyError if they are not of its shapes."""
    for name, own in _arrays(into).items():
        found = arrays[name]
        if found.dtype != own.dtype or found.shape != own.shape:
            raise ValueError(f"{name} is {found.dtype} {list(found.shape)}")
        own[:] = found
