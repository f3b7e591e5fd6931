"""A dictionary of arrays as a run: what a loop of one's own has in memory, saved at once.

    save_activations({"layers.0.mlp": acts}, "run", attention_mask=mask, input_ids=ids)

The rows go through `ActivationWriter`, some samples at a time, so that mapped arrays may be larger
than the memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.host_arrays import host_array
from extraction.run.rows import UNKNOWN, RowBlock
from extraction.storage import Storage
from extraction.writing.activation_writer import ActivationWriter

FILE_BYTES = 64 << 20
"""Bytes of all hook points in the files of a batch, unless `rows_per_file` says otherwise."""

FEWEST_ROWS = 512
CHUNK_BYTES = 16 << 20
"""Approximate bytes of activations that are written at a time."""

LARGEST_ID = 1 << 31
ARCHIVES = (".npz", ".npy", ".pt", ".pth")


def save_activations(
    activations: Mapping[str, Any],
    address: str | Path | Storage,
    *,
    attention_mask: Any = None,
    input_ids: Any = None,
    task_ids: Sequence[str] | None = None,
    store_format: str = "safetensors",
    store_dtype: str | None = None,
    rows_per_file: int | None = None,
    **settings: Any,
) -> int:
    """Write arrays of activations as a run, and return the number of rows of each hook point.

    Row `[n, s]` becomes the row of sample n at the position that counts the tokens before s; with
    arrays `[N, D]` each sample has one row, whose position is not known. The rows are read by
    `ActivationDataset(address, name)`.

    Args:
        activations: `[N, S, D]` or `[N, D]` by name, each with a width D of its own; arrays of
            numpy or JAX, or tensors of torch; floating point.
        address: folder of the run, `gs://bucket/prefix`, or an open `Storage`; it must not hold
            another run.
        attention_mask: `[N, S]`, 0 for padding, which is not written, on either side; of arrays
            `[N, D]`, `[N]`. None: there is no padding.
        input_ids: whole numbers, shaped as the mask: the token of each row. None: unknown.
        task_ids: `[N]` names of the samples, all different; None: `"0"`, `"1"` and so on.
        store_format: `safetensors` or `pickle`.
        store_dtype: `float32` or `bfloat16`; None: bfloat16 if all arrays are, and the format holds
            it.
        rows_per_file: rows of each hook point in a file; None: those of 64 MiB of all hook points,
            at least 512.
        settings: further arguments of `ActivationWriter`, such as `model_name` and `token_text`.

    Raises:
        ExistingRunError: the folder already holds a run.
        StoreError: an array or a setting cannot be used; the message says what would be right.
    """
    _refuse_archives(address)
    shape = _shape(activations)
    mask = _keys("attention_mask", attention_mask, shape)
    ids = _keys("input_ids", input_ids, shape)
    names = _names(task_ids, shape[0])
    real = np.ones(shape, bool) if mask is None else mask != 0
    if not real.any():
        raise StoreError("the attention_mask is 0 everywhere, so there are no rows to save")
    if ids is not None and (ids.dtype.kind not in "iu" or abs(ids[real]).max() >= LARGEST_ID):
        raise StoreError(f"input_ids must be whole numbers below {LARGEST_ID:,}, not {ids.dtype}")
    widths = {name: int(values.shape[-1]) for name, values in activations.items()}
    row_bytes = 4 * sum(widths.values())
    if store_dtype is None:
        half = all(str(values.dtype).endswith("bfloat16") for values in activations.values())
        store_dtype = "bfloat16" if half and store_format == "safetensors" else "float32"
    if rows_per_file is None:
        rows_per_file = max(FEWEST_ROWS, FILE_BYTES // row_bytes)
    writer = ActivationWriter(
        address,
        widths,
        rows_per_file=rows_per_file,
        store_format=store_format,
        store_dtype=store_dtype,
        **settings,
    )
    step = max(1, CHUNK_BYTES // (row_bytes * int(np.prod(shape[1:]))))
    with writer:
        for first in range(0, shape[0], step):
            part = slice(first, first + step)
            writer.add(_block(activations, part, real[part], ids, names))
    return int(real.sum())


def _refuse_archives(address: str | Path | Storage) -> None:
    name = address if isinstance(address, str | Path) else ""
    if Path(name).suffix in ARCHIVES:
        run = Path(name).with_suffix("")
        raise StoreError(
            f"{name} names a file, but a run is a folder: save the arrays to {run};"
            f" extraction.exports.export({str(run)!r}, {name!r}, 'npz') makes a file of it, or 'pt'"
        )


def _shape(activations: Mapping[str, Any]) -> tuple[int, ...]:
    """Return `(N, S)` or `(N,)` of all arrays."""
    shapes = {name: tuple(getattr(values, "shape", ())) for name, values in activations.items()}
    for name, values in activations.items():
        if len(shapes[name]) not in (2, 3) or 0 in shapes[name]:
            raise StoreError(
                f"{name} has the shape {list(shapes[name])}; activations are arrays [N, S, D] or"
                " [N, D] of N samples, none of these 0"
            )
        if "float" not in str(values.dtype):
            raise StoreError(
                f"{name} is {values.dtype}, and activations are floating point; masks and token ids"
                " have arguments of their own, attention_mask and input_ids"
            )
    different = {shape[:-1] for shape in shapes.values()}
    if len(different) > 1:
        told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise StoreError(f"the arrays must have the same samples and tokens, not {told}")
    if not different:
        raise StoreError("there are no activations; give arrays by name, {'layer_6': [N, S, D]}")
    return different.pop()


def _keys(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the mask or the token ids, checked."""
    if values is None:
        return None
    array = host_array(values)
    if array.shape != shape:
        raise StoreError(f"{name} must have the shape {list(shape)}, not {list(array.shape)}")
    return array


def _names(task_ids: Sequence[str] | None, count: int) -> list[str]:
    names = [str(number) for number in range(count)] if task_ids is None else list(task_ids)
    if len(names) != count or len(set(names)) != count:
        raise StoreError(
            f"task_ids must be {count} different names, one for each sample; {len(names)} are"
            f" given, {len(set(names))} of them different"
        )
    return names


def _block(
    activations: Mapping[str, Any],
    part: slice,
    real: np.ndarray,
    ids: np.ndarray | None,
    names: list[str],
) -> RowBlock:
    """Return the rows of some samples; `real` are theirs."""
    position = np.cumsum(real, axis=1)[real] - 1 if real.ndim == 2 else UNKNOWN
    return RowBlock.of(
        {name: host_array(values[part])[real] for name, values in activations.items()},
        [names[part.start + number] for number in np.nonzero(real)[0].tolist()],
        position=position,
        token_id=UNKNOWN if ids is None else ids[part][real],
    )
