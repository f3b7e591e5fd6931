"""A folder that mi_crow's `LocalStore` reads, as founding document 001 shows it.

    activations/<run_id>/
        batch_0/<hook point>/activations.safetensors    "tensor" [rows, D]
        batch_0/metadata.json                           the samples of this batch
        meta.json                                       the run

`LocalStore(OUT, runs_prefix="activations")` lists and loads the batches, and `StoreDataloader`
gives their rows to mi_crow's trainer. A batch holds the rows of `shard_size` samples, the last
batch those of the rest: sample by sample, in order of position. There is no padding, because the
trainer takes every row of a tensor.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from extraction.errors import StoreError
from extraction.exports.ordered_rows import ordered_rows
from extraction.exports.run_rows import RunRows
from extraction.exports.samples import Samples
from extraction.exports.target import check_count, option
from extraction.formats.safetensors_format import ACTIVATION_CODES, array_buffer
from extraction.reading.frameworks import Rows
from extraction.storage.names import check_hook_point, check_name
from tensor_files.safetensors_header import header_of

PREFIX = "activations"
"""Folder of the runs; mi_crow's own default is `runs`."""

KEY = "activations"
"""mi_crow's name of what a layer's file holds, and the file's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiCrow:
    """The target `mi_crow`; the module describes its files.

    Raises:
        StoreError: an option is out of range.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    needs: ClassVar[tuple[str, ...]] = ()

    shard_size: int = option(64, "samples in a file (default: 64)", type=int)

    def __post_init__(self):
        check_count("shard_size", self.shard_size)

    def write(self, run: RunRows, place: Path) -> list[str]:
        """See `Target.write`."""
        run_id = _run_id(run)
        folder = place / PREFIX / run_id
        for hook in run.hook_points:
            check_hook_point(hook)
        left, batches = _Left(ordered_rows(run)), []
        for number, samples in enumerate(_batches(run.samples, self.shard_size)):
            rows = sum(len(sample["positions"]) for sample in samples)
            counts = {"batch": number, "sample_count": len(samples), "row_count": rows}
            here = folder / f"batch_{number}"
            _write_batch(run, here, left, rows)
            names = {hook: [KEY] for hook in run.hook_points}
            keys = counts | {"samples": samples, "_tensor_metadata_names": names}
            _write_json(here / "metadata.json", keys)
            batches.append(counts)
        document = {
            "run_name": run_id,
            "model": run.info.model_name,
            "options": {"dtype": run.dtype, "batch_size": self.shard_size},
            "layer_signatures": run.hook_points,
            "num_layers": len(run.hook_points),
            "layer_name": run.hook_points[0] if len(run.hook_points) == 1 else None,
            "sample_count": len(run.samples),
            "row_count": len(run),
            "batch_count": len(batches),
            "batch_info": batches,
            "shard_size": self.shard_size,
            "hidden_dims": run.widths,
        }
        _write_json(folder / "meta.json", document)
        return [f"{len(batches):,} batches of {self.shard_size:,} samples in {PREFIX}/{run_id}"]


def _run_id(run: RunRows) -> str:
    """Return the name of the run's folder."""
    run_id: Any = "run" if run.info.run_id is None else run.info.run_id
    if type(run_id) is not str or "/" in run_id:
        raise StoreError(f"{run.address} has the run id {run_id!r}, which no folder can have")
    return check_name(run_id)


def _batches(samples: Samples, shard_size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield what `metadata.json` of each batch says of its samples."""
    order = np.argsort(samples.places())
    ends = np.cumsum(samples.rows).tolist()
    batch: list[dict[str, Any]] = []
    for (task_id, sample_idx), rows, end in zip(
        samples.numbers, samples.rows.tolist(), ends, strict=True
    ):
        numbers = order[end - rows : end]
        keys = {"task_id": task_id, "sample_idx": sample_idx}
        positions, token_ids = samples.position[numbers], samples.token_id[numbers]
        batch.append(keys | {"positions": positions.tolist(), "token_ids": token_ids.tolist()})
        if len(batch) == shard_size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Left:
    """The rows that are not written yet."""

    def __init__(self, rows: Iterator[Rows]):
        self._rows = rows
        self._held: Rows = {}

    def take(self, most: int) -> Rows:
        """Return the next rows, at least one and at most so many, of each hook point."""
        if not self._held:
            self._held = next(self._rows)
        taken = {key: values[:most] for key, values in self._held.items()}
        rest = {key: values[most:] for key, values in self._held.items()}
        self._held = rest if all(map(len, rest.values())) else {}
        return taken


def _write_batch(run: RunRows, folder: Path, left: _Left, rows: int) -> None:
    """Write the next rows, a file for each hook point."""
    with contextlib.ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for hook, width in run.widths.items():
            (folder / hook).mkdir(parents=True)
            path = folder / hook / f"{KEY}.safetensors"
            files[hook] = stack.enter_context(path.open("xb"))
            files[hook].write(header_of({"tensor": (ACTIVATION_CODES[run.dtype], (rows, width))}))
        while rows:
            taken = left.take(rows)
            for hook, file in files.items():
                file.write(array_buffer(np.ascontiguousarray(taken[hook])))
            rows -= len(taken[run.hook_points[0]])


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
