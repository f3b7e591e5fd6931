"""Exports: a run as one dense file or folder that other programs read.

    from extraction.exports import export

    export("activations", "acts.npz", to="npz", hook_points=[6, 12])

or `python -m extraction export`. A target is one file here and one line in `TARGETS`.

| target | is | activations | for |
|---|---|---|---|
| npz | a file | float32 | `numpy.load`; founding document 002 |
| pt | a file | float32, bfloat16 | `torch.load`; founding document 002 |
| memmap | a folder | float32 | `numpy.memmap`; founding document 003 |
| huggingface | a folder | float32 | `datasets.load_from_disk`, SAELens |
| mi_crow | a folder | float32, bfloat16 | mi_crow's `LocalStore`; founding document 001 |

Read in this order: `samples` (the sample of each row), `run_rows` (the rows), `tokens`, `target`
(the interface of a target), `new_place` (the temporary path), `padded` (the arrays of npz and pt),
`ordered_rows` (rows sample by sample), the targets.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extraction.errors import StoreError
from extraction.exports.huggingface import HuggingFace
from extraction.exports.memmap import Memmap
from extraction.exports.mi_crow import MiCrow
from extraction.exports.new_place import local_place, new_place, refuse_existing
from extraction.exports.npz import Npz
from extraction.exports.pt import Pt
from extraction.exports.run_rows import RunRows
from extraction.exports.target import Target
from extraction.progress import Progress, silent
from extraction.reading.row_filters import RowFilters
from extraction.setting_names import setting
from extraction.storage import Storage

__all__ = ["DTYPES", "TARGETS", "Exported", "export", "flags"]

TARGETS: dict[str, type[Target]] = {
    "npz": Npz,
    "pt": Pt,
    "memmap": Memmap,
    "huggingface": HuggingFace,
    "mi_crow": MiCrow,
}

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote.

    Attributes:
        samples: number of samples that have rows.
        rows: number of rows of each hook point, without those that filters leave out; `notes` say
            how many, and if the form leaves out more.
        hook_points: canonical names of the exported hook points.
        notes: what the user should know, a sentence each.
    """

    samples: int
    rows: int
    hook_points: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    source: str | Path | Storage,
    out: str | Path,
    to: str,
    *,
    hook_points: Sequence[int | str] | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
    max_norm_multiple: float | None = None,
    exclude_special: bool | Sequence[int] = False,
    skip_first: int = 0,
    **options: Any,
) -> Exported:
    """Write the rows of a run in another form.

    `out` appears when it is complete; an export that fails leaves nothing.

    Args:
        source: folder of the run, `gs://bucket/prefix`, or a storage.
        out: file or folder to write, which must not exist.
        to: a name in `TARGETS`.
        hook_points: numbers of blocks or names; None: all that the run has.
        dtype: float32 or bfloat16; None: the run's own, or float32 where the target cannot hold it.
            float32 rows become bfloat16 only if it is given here.
        progress: called with the progress of the export.
        max_norm_multiple: leave out rows whose norm is above this many times the median norm of
            their hook point, at any of the hook points.
        exclude_special: leave out rows of special tokens: True for those that the run records, or
            token ids.
        skip_first: leave out rows at positions below this number.
        options: options of the target, the fields of its class.

    Raises:
        StoreError: `out` exists, there is no run, or it does not fit into the target; the message
            says what would be right.
        CorruptBatchError: a file is damaged.
    """
    if to not in TARGETS:
        raise StoreError(f"there is no target {to!r}; choose one of {', '.join(TARGETS)}")
    target = _target(to, options)
    if dtype is not None and dtype not in target.dtypes:
        raise StoreError(f"{to} holds {' or '.join(target.dtypes)}, not {dtype}")
    for package in target.needs:
        if importlib.util.find_spec(package) is None:
            raise StoreError(
                f"{setting('to', to)} needs {package}, which is not installed; run"
                f" `pip install {package}`"
            )
    path = local_place(out)
    refuse_existing(path)  # before all keys are read
    filters = RowFilters(
        max_norm_multiple=max_norm_multiple,
        exclude_special=exclude_special,
        skip_first=skip_first,
    )
    chosen = dataclasses.asdict(filters) if filters else None
    run = RunRows(source, hook_points, dtype, target.dtypes, progress, chosen)
    notes = _notes(run)
    with new_place(path) as place:
        notes = [*target.write(run, place), *notes]
    return Exported(
        samples=len(run.samples),
        rows=len(run),
        hook_points=run.hook_points,
        notes=tuple(notes),
    )


def flags() -> dict[str, dict[str, Any]]:
    """Return the options of all targets: arguments of `ArgumentParser.add_argument` by name."""
    return {
        field.name: field.metadata["flag"] | {"help": f"{to}: {field.metadata['flag']['help']}"}
        for to, target in TARGETS.items()
        for field in dataclasses.fields(target)
    }


def _target(to: str, options: dict[str, Any]) -> Target:
    fields = dataclasses.fields(TARGETS[to])
    for name in options:
        if name not in [field.name for field in fields]:
            takes = ", ".join(setting(field.name) for field in fields) or "no options"
            raise StoreError(f"{setting(name)} is not for {setting('to', to)}, which takes {takes}")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in options:
            what = field.metadata["flag"]["help"]
            raise StoreError(f"{setting('to', to)} needs {setting(field.name)}: {what}")
    return TARGETS[to](**options)


def _notes(run: RunRows) -> list[str]:
    without_rows = sum(sample is None for sample, _, _ in run.sequences())
    notes = run.left_out_notes()
    if without_rows:
        notes.append(f"samples that have no rows, left out: {without_rows:,}")
    if run.info.complete is False:
        notes.append("the run is not complete; it may still get rows, which this export lacks")
    return notes
