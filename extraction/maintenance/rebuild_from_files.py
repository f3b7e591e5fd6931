"""Rebuild `metadata.json` of a folder without `_run` from the batch files themselves.

Without commit records nothing says what the files should be. Batches are listed if all their files
are whole and have the same keys, and the run counts as incomplete. The model's name is taken from
an old `metadata.json`, if there is one.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from extraction.documents import read_json
from extraction.errors import CorruptBatchError, StoreError
from extraction.formats import FORMATS, ParsedBatch
from extraction.maintenance.checks.contents import KEY_COLUMNS
from extraction.maintenance.checks.unique_keys import KeyIndex, sequence_hashes
from extraction.progress import Progress, silent
from extraction.run.large_norms import summary_of
from extraction.run.metadata import BatchFile, get_metadata, layer_field, metadata_document
from extraction.run.statistics import RowStatistics
from extraction.run_layout import KEPT_METADATA, METADATA_FILE, parse_batch_file
from extraction.storage import Storage
from extraction.writing.disk_retry import patiently


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What the new `metadata.json` lists.

    Attributes:
        batches: number of batches listed.
        left_out: a line for each batch that is not listed, with the reason.
    """

    batches: int
    left_out: list[str]


@dataclasses.dataclass
class _Found:
    """What the files of a folder without `_run` say."""

    batches: list[BatchFile] = dataclasses.field(default_factory=list)
    statistics: dict[str, list[RowStatistics]] = dataclasses.field(default_factory=dict)
    sequences: KeyIndex[int] = dataclasses.field(default_factory=KeyIndex)
    dtype: str | None = None
    widths: dict[str, int] = dataclasses.field(default_factory=dict)


def rebuild_from_files(storage: Storage, progress: Progress = silent) -> Rebuilt:
    """Write `metadata.json`, marked `rebuilt_from_files`, with all that the files say.

    Args:
        storage: storage of a folder without `_run`.
        progress: called with the progress of reading.

    Raises:
        StoreError: the folder holds no batches, or batches of several formats.
    """
    by_extension = {file_format.extension: name for name, file_format in FORMATS.items()}
    batches: dict[int, dict[str, str]] = {}
    formats = set()
    for name in storage.names():
        parts = parse_batch_file(name)
        if parts and parts.extension in by_extension:
            batches.setdefault(parts.batch_id, {})[parts.hook_point] = name
            formats.add(by_extension[parts.extension])
    if not batches:
        raise StoreError(f"{storage.address} holds no run and no batch files")
    if len(formats) > 1:
        raise StoreError(f"{storage.address} holds files of several formats: {sorted(formats)}")
    file_format = formats.pop()
    hooks = sorted({h for files in batches.values() for h in files}, key=_layer_order)
    found, left_out = _Found(), []
    for number, (batch_id, files) in enumerate(sorted(batches.items()), 1):
        progress("batches read", number, len(batches))
        try:
            _take_batch(storage, file_format, hooks, batch_id, files, found)
        except CorruptBatchError as error:
            left_out.append(f"batch {batch_id} is left out: {error}")
    old = _old_document(storage)
    streams = [hook for hook in hooks if type(layer_field(hook)) is int]
    document = metadata_document(
        model_name=old.get("model_name", "unknown"),
        hook_points=tuple(hooks),
        hidden_dim=found.widths.get((streams or hooks)[0], 0),
        batches=found.batches,
        total_sequences=found.sequences.distinct(),
        complete=False,
        file_format=file_format,
        dtype=found.dtype or "float32",
        run=old.get("run", {}),
        more={
            "rebuilt_from_files": True,
            "run_id": old.get("run_id"),
            "statistics": {
                hook: summary_of(RowStatistics.merge(found.statistics.get(hook, ())))
                for hook in hooks
            },
        },
    )
    patiently(storage.address, lambda: storage.replace(METADATA_FILE, document))
    return Rebuilt(batches=len({batch.batch_id for batch in found.batches}), left_out=left_out)


def _layer_order(hook: str) -> tuple[int, int | str]:
    layer = layer_field(hook)
    return (0, layer) if isinstance(layer, int) else (1, layer)


def _take_batch(
    storage: Storage,
    file_format: str,
    hooks: Sequence[str],
    batch_id: int,
    files: dict[str, str],
    found: _Found,
) -> None:
    """Add a batch that has a whole file of every hook point, all with the same keys.

    Raises:
        CorruptBatchError: a file is missing, damaged, or unlike the others.
    """
    lacking = [hook for hook in hooks if hook not in files]
    if lacking:
        raise CorruptBatchError(f"it has no file of {', '.join(lacking)}")
    first: ParsedBatch | None = None
    entries, statistics, widths = [], {}, {}
    for hook in hooks:
        batch = _parse(storage, file_format, files[hook])
        widths[hook] = batch.stored.shape[1]
        first = first or batch
        if batch.hook_point != hook:
            raise CorruptBatchError(f"{files[hook]} holds rows of {batch.hook_point}")
        if widths[hook] != found.widths.get(hook, widths[hook]):
            raise CorruptBatchError(f"{files[hook]} has rows of {widths[hook]} numbers")
        if batch.dtype != (found.dtype or first.dtype):
            raise CorruptBatchError(f"{files[hook]} holds {batch.dtype}")
        for column in KEY_COLUMNS:
            if not np.array_equal(getattr(batch.keys, column), getattr(first.keys, column)):
                raise CorruptBatchError(f"{files[hook]} has other {column} than {files[hooks[0]]}")
        statistics[hook] = RowStatistics.of(batch.block().activations[hook], keys=batch.keys)
        entries.append(
            BatchFile(
                batch_id=batch_id, hook_point=hook, file=files[hook], n_samples=len(batch.row_keys)
            )
        )
    assert first is not None
    found.dtype = first.dtype
    found.widths |= widths
    found.batches += entries
    for hook, part in statistics.items():
        found.statistics.setdefault(hook, []).append(part)
    found.sequences.add(batch_id, np.unique(sequence_hashes(first.keys)))


def _parse(storage: Storage, file_format: str, name: str) -> ParsedBatch:
    second = FORMATS[file_format].sidecar_extension
    sidecar = None
    if second is not None:
        stem = name.removesuffix(FORMATS[file_format].extension)
        with contextlib.suppress(FileNotFoundError):
            sidecar = storage.get(stem + second)
    try:
        return FORMATS[file_format].parse(storage.get(name), sidecar)
    except CorruptBatchError as error:
        raise CorruptBatchError(f"{name}: {error}") from None


def _old_document(storage: Storage) -> dict[str, Any]:
    """Return the folder's `metadata.json`; if it cannot be read, keep a copy and return {}."""
    try:
        data = get_metadata(storage)
    except FileNotFoundError:
        return {}
    try:
        old = read_json(data)
        if type(old) is dict and type(old.get("run", {})) is dict:
            return old
    except ValueError:
        pass
    with contextlib.suppress(FileExistsError):
        storage.put_new(KEPT_METADATA, data)
    return {}
