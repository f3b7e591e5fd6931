"""The file of a pass over the rows: where it stands, and what it has found.

A process saves `pass/I_of_N.safetensors` below the output once a minute and when it is stopped.
With `--resume True` it goes on there. The finished files of all parts are added up.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.documents import is_count
from extraction.storage import Storage
from sae.latents.latent_pass import LatentPass
from sae.part_files import load_part_file, part_name, save_part_file

FOLDER = "pass"
"""Folder of the parts' files below the output."""

COUNTS = ("rows", "not_finite", "next_row")


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
    found.settle()
    counts = {"rows": found.rows, "not_finite": found.not_finite, "next_row": next_row}
    texts = {"counts": counts, "left_out": dict(found.left_out)}
    save_part_file(storage, part_name(FOLDER, part), _arrays(found), texts, about)


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

    def fill(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
        counts = [told["counts"][count] for count in COUNTS]
        if not all(map(is_count, [*counts, *told["left_out"].values()])):
            raise ValueError("its counts are none")
        _fill(into, arrays)
        into.rows, into.not_finite, next_row = counts
        into.left_out = Counter(told["left_out"])
        return next_row

    name = part_name(FOLDER, part)
    try:
        return load_part_file(storage, name, ("counts", "left_out"), about, fill)
    except FileNotFoundError:
        return None


def _fill(into: LatentPass, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into a pass; raise ValueError or KeyError if they are not of its shapes."""
    for name, own in _arrays(into).items():
        found = arrays[name]
        if found.dtype != own.dtype or found.shape != own.shape:
            raise ValueError(f"{name} is {found.dtype} {list(found.shape)}")
        own[:] = found
