"""The sums of one read, and their files: `sums/I_of_N.safetensors` below the output."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extraction.documents import is_count
from extraction.storage import Storage
from sae.part_files import load_part_file, part_name, save_part_file
from sae.scores.latent_sums import ActiveValues, LatentSums
from sae.scores.row_groups import NO_CELL

FOLDER = "sums"
"""Folder of the parts' files below the output."""

ARRAYS = {
    "active": np.int64, "mean": np.float64, "deviations": np.float64, "keys": np.uint64,
    "counts": np.int64, "numbers": np.int64,
}  # fmt: skip
"""Arrays of sums in a file; `numbers` are rows, dropped_bits and most."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReadSums:
    """The sums of rows, in all cells.

    Attributes:
        cells: sums of each cell, by the autoencoder's name.
        background: sums of the background's rows, by the autoencoder's name; empty without one.
        left_out: number of rows that each filter left out of all rows, and of rows of no cell, by
            the run's address.
        not_finite: rows that are left out as they or their latents are not finite, by the
            autoencoder's name.
    """

    cells: Mapping[str, Sequence[LatentSums]]
    background: Mapping[str, LatentSums]
    left_out: Mapping[str, Mapping[str, int]]
    not_finite: Mapping[str, int]

    def __add__(self, other: "ReadSums") -> "ReadSums":
        return ReadSums(
            cells={
                name: [a + b for a, b in zip(cells, other.cells[name], strict=True)]
                for name, cells in self.cells.items()
            },
            background={n: sums + other.background[n] for n, sums in self.background.items()},
            left_out={
                address: {**found, NO_CELL: found[NO_CELL] + other.left_out[address][NO_CELL]}
                for address, found in self.left_out.items()
            },
            not_finite={n: count + other.not_finite[n] for n, count in self.not_finite.items()},
        )


def save_part(
    sums: ReadSums, storage: Storage, part: tuple[int, int], about: Mapping[str, Any]
) -> None:
    """Write the sums of a part.

    Args:
        sums: the sums.
        storage: the output.
        part: number of the part from 0, and number of parts.
        about: JSON values that must be the same in all parts.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, one in _named_sums(sums).items():
        values = one.values
        numbers = np.array([one.rows, values.dropped_bits, values.most], np.int64)
        found = {"active": one.active, "mean": one.mean, "deviations": one.deviations}
        found |= {"keys": values.keys, "counts": values.counts, "numbers": numbers}
        arrays |= {f"{name}.{field}": array for field, array in found.items()}
    texts = {"left_out": sums.left_out, "not_finite": sums.not_finite}
    save_part_file(storage, part_name(FOLDER, part), arrays, texts, about)


def all_parts(
    sums: ReadSums, storage: Storage, part: tuple[int, int], about: Mapping[str, Any]
) -> ReadSums | None:
    """Return the sums of all parts; None if a part is not there yet.

    Args:
        sums: sums of this part.
        storage: the output.
        part: number of this part, and number of parts.
        about: JSON values that must be the same in all parts.

    Raises:
        StoreError: a part is damaged, or of other settings or rows.
    """
    there = set(storage.names(f"{FOLDER}/"))
    parts = [part_name(FOLDER, (number, part[1])) for number in range(part[1])]
    if not there.issuperset(parts):
        return None
    total: ReadSums | None = None
    for number, name in enumerate(parts):  # always in this order, so the results are the same
        found = sums if number == part[0] else _loaded(sums, storage, name, about)
        total = found if total is None else total + found
    return total


def _named_sums(sums: ReadSums) -> dict[str, LatentSums]:
    """Return all sums by names for a file; names of autoencoders may be any text."""
    named = {}
    for place, (name, cells) in enumerate(sums.cells.items()):
        named |= {f"{place}.{cell}": one for cell, one in enumerate(cells)}
        if name in sums.background:
            named[f"{place}.background"] = sums.background[name]
    return named


def _loaded(like: ReadSums, storage: Storage, name: str, about: Mapping[str, Any]) -> ReadSums:
    """Return the sums of another part, with the cells and autoencoders of this one."""
    return load_part_file(
        *(storage, name, ("left_out", "not_finite"), about),
        lambda told, arrays: _read_sums(like, told, arrays),
    )


def _read_sums(
    like: ReadSums, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> ReadSums:
    """Return the sums of a file; raise ValueError or KeyError if they cannot be such."""
    _check_counts(told, like)
    made = {key: _sums(arrays, key, one) for key, one in _named_sums(like).items()}
    names = list(like.cells)
    return ReadSums(
        cells={
            n: [made[f"{place}.{cell}"] for cell in range(len(like.cells[n]))]
            for place, n in enumerate(names)
        },
        background={
            n: made[f"{place}.background"] for place, n in enumerate(names) if n in like.background
        },
        left_out=told["left_out"],
        not_finite=told["not_finite"],
    )


def _check_counts(told: Mapping[str, Any], like: ReadSums) -> None:
    """Raise ValueError if a file's counts are not those that this part has too."""
    left_out, not_finite = told["left_out"], told["not_finite"]
    known = set(left_out) == set(like.left_out) and set(not_finite) == set(like.not_finite)
    counts = [found.get(NO_CELL) for found in left_out.values()] + list(not_finite.values())
    if not (known and all(map(is_count, counts))):
        raise ValueError("it lacks counts of rows")


def _sums(arrays: Mapping[str, np.ndarray], key: str, like: LatentSums) -> LatentSums:
    """Return sums of a file's arrays; raise ValueError or KeyError if they cannot be such."""
    found = {field: arrays[f"{key}.{field}"] for field in ARRAYS}
    d_sae, keys = like.d_sae, found["keys"]
    shapes = {"active": (d_sae,), "mean": (d_sae,), "deviations": (d_sae,), "numbers": (3,)}
    for field, dtype in ARRAYS.items():
        shape = shapes.get(field, (len(keys),) if keys.ndim else ())
        if found[field].dtype != dtype or found[field].shape != shape:
            raise ValueError(f"{key}.{field} is {found[field].dtype} {list(found[field].shape)}")
    rows, dropped, most = found["numbers"].tolist()
    if rows < 0 or not 0 <= dropped <= 32 or most < 1:
        raise ValueError(f"{key} has impossible counts")
    if len(keys) and (int(keys[-1]) >> 32 >= d_sae or (keys[1:] <= keys[:-1]).any()):
        raise ValueError(f"{key} has impossible values")
    return LatentSums(
        rows=rows,
        active=found["active"],
        mean=found["mean"],
        deviations=found["deviations"],
        values=ActiveValues(keys=keys, counts=found["counts"], dropped_bits=dropped, most=most),
    )
