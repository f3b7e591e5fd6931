"""A folder without `_run/`, whose batches are listed only in `metadata.json`.

It was copied without its `_run/`, or founding document 004's own code wrote it. There are no
checksums, so damage is noticed only if it breaks the structure of a file.
"""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from extraction.documents import is_count, read_json
from extraction.errors import StoreError, UnsafeNameError
from extraction.formats import FORMATS
from extraction.reading.run_contents import (
    CommittedRun,
    RunContents,
    RunDescription,
    RunProgress,
    StoredBatch,
    StoredFile,
    known_format,
    token_ids,
)
from extraction.run.identity import read_identity
from extraction.run.metadata import get_metadata
from extraction.run.vocabulary import Vocabulary
from extraction.run_layout import METADATA_FILE, RUN_FILE
from extraction.storage import Storage, open_storage
from extraction.storage.names import check_hook_point, check_name


def open_run(source: str | Path | Storage) -> RunContents:
    """Return the contents of a run.

    Args:
        source: folder, `gs://bucket/prefix`, `s3://bucket/prefix`, or an open back end.

    Raises:
        StoreError: there is no run that can be read.
    """
    is_address = isinstance(source, str | Path)
    storage = open_storage(source, writable=False) if is_address else source
    identity = read_identity(storage)
    return ListedRun(storage) if identity is None else CommittedRun(storage, identity)


class ListedRun:
    """A folder whose `metadata.json` lists the batches.

    Args:
        storage: the folder.

    Raises:
        StoreError: the file is missing or damaged.
    """

    def __init__(self, storage: Storage):
        self.storage = storage
        document = _read_document(storage)
        with _damage_named():
            self.description = RunDescription(
                run_id=document.get("run_id"),
                model_name=str(document["model_name"]),
                hook_points=tuple(_hook_point(layer) for layer in document["layers_extracted"]),
                hidden_dim=_count(document["hidden_dim"]),
                file_format=known_format(document.get("format", "pickle"), METADATA_FILE),
                dtype=_dtype(document.get("dtype")),
                special_token_ids=token_ids(document.get("run")),
            )
        self._document = document

    def new_batches(self, hook_points: Sequence[str], known: Collection[int]) -> list[StoredBatch]:
        """See `RunContents.new_batches`."""
        self._document = _read_document(self.storage)
        sidecar = FORMATS[self.description.file_format].sidecar_extension
        batches = []
        with _damage_named():
            listed = _listed_files(self._document["batches"], self.description.hook_points)
            numbers = {hook: list(listed[hook]) for hook in hook_points}
            first = hook_points[0]
            for hook in hook_points:
                differing = set(numbers[hook]) ^ set(numbers[first])
                if differing:
                    raise StoreError(
                        f"{first} and {hook} do not have the same batches: only one of them has"
                        f" {sorted(differing)[:5]}"
                    )
            for batch_id in sorted(set(numbers[first]) - set(known)):
                rows = {hook: listed[hook][batch_id][1] for hook in hook_points}
                if len(set(rows.values())) > 1:
                    raise StoreError(f"batch {batch_id} has different numbers of rows: {rows}")
                names = {hook: listed[hook][batch_id][0] for hook in hook_points}
                beside = {h: f"{n.rpartition('.')[0]}.{sidecar}" for h, n in names.items()}
                batches.append(
                    StoredBatch(
                        batch_id=batch_id,
                        rows=rows[first],
                        files={h: StoredFile(name=n) for h, n in names.items()},
                        sidecars={h: StoredFile(name=n) for h, n in beside.items() if sidecar},
                    )
                )
        return [batch for batch in batches if batch.rows]

    def vocabulary(self) -> Vocabulary:
        """See `RunContents.vocabulary`."""
        return {}

    def progress(self) -> RunProgress:
        """See `RunContents.progress`."""
        document = self._document
        sequences, complete = document.get("total_sequences"), document.get("complete")
        with _damage_named():
            if type(complete) not in (bool, NoneType):
                raise ValueError(f"complete {complete!r}")
            return RunProgress(
                sequences=None if sequences is None else _count(sequences),
                complete=complete,
                statistics=_statistics(document.get("statistics", {})),
            )


def _read_document(storage: Storage) -> dict[str, Any]:
    try:
        with _damage_named():
            document = read_json(get_metadata(storage))
            if type(document) is not dict:
                raise ValueError("it is not an object")
            return document
    except FileNotFoundError:
        raise StoreError(
            f"{storage.address} holds no run: there is neither {RUN_FILE} nor {METADATA_FILE}"
        ) from None


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Turn any error that a damaged document leads to into one that names the file."""
    try:
        yield
    except UnsafeNameError as error:
        raise StoreError(f"{METADATA_FILE} is damaged: {error}") from None
    except StoreError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"{METADATA_FILE} is damaged: {error!r}") from None


def _listed_files(
    entries: Any, hook_points: Sequence[str]
) -> dict[str, dict[int, tuple[str, int]]]:
    """Return name and number of rows of each batch's file, by hook point."""
    listed: dict[str, dict[int, tuple[str, int]]] = {hook: {} for hook in hook_points}
    for entry in entries:
        hook, batch_id, name = _hook_point(entry["layer"]), _count(entry["batch_id"]), entry["file"]
        check_name(name)
        if "/" in name:
            raise StoreError(f"{METADATA_FILE} names {name!r}, which is not a file in its folder")
        if hook not in listed:
            raise StoreError(f"{METADATA_FILE} lists {name} of {hook}, not in layers_extracted")
        if batch_id in listed[hook]:
            raise StoreError(f"{METADATA_FILE} lists batch {batch_id} of {hook} twice")
        listed[hook][batch_id] = name, _count(entry["n_samples"])
    return listed


def _statistics(entries: Any) -> dict[str, dict[str, Any]]:
    for entry in entries.values():
        median = entry["median_norm"]
        if type(median) not in (int, float, NoneType) or not (median or 0) < math.inf:
            raise ValueError(f"median_norm {median!r}")
    return entries


def _hook_point(layer: Any) -> str:
    if type(layer) not in (int, str):
        raise ValueError(f"layer {layer!r}")
    return check_hook_point(layer if isinstance(layer, str) else f"layer_{layer}")


def _dtype(name: Any) -> str | None:
    if name not in (None, "float32", "bfloat16"):
        raise ValueError(f"dtype {name!r}")
    return name


def _count(number: Any) -> int:
    if not is_count(number):
        raise ValueError(f"{number!r} where a count is needed")
    return number
