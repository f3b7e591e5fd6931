"""The batches of a run and its description, before any batch is read.

They are read from the commit records. `listed_run` reads folders that were copied without `_run/`,
or that founding document 004's own code wrote.
"""

import dataclasses
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from extraction.documents import is_count
from extraction.errors import StoreError
from extraction.formats import FORMATS
from extraction.hook_point_names import few, nearest, spellings
from extraction.reading.collector_pause import collector_paused
from extraction.run.identity import RunIdentity
from extraction.run.large_norms import summary_of
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run.totals import RunTotals
from extraction.run.vocabulary import Vocabulary
from extraction.run_layout import RUN_FILE
from extraction.storage import Storage
from extraction.writing.finalise import planned_batches


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file of a batch.

    Attributes:
        name: name of the file in the run's folder.
        bytes: size of the file; None if it is not recorded.
        crc32c: checksum of its content, eight hexadecimal digits; None if it is not recorded.
    """

    name: str
    bytes: int | None = None
    crc32c: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredBatch:
    """One batch, with the files of the hook points that are read.

    Attributes:
        batch_id: number of the batch.
        rows: number of rows of each hook point.
        files: file of each hook point.
        sidecars: second file of each hook point, for formats that have one.
    """

    batch_id: int
    rows: int
    files: Mapping[str, StoredFile]
    sidecars: Mapping[str, StoredFile]

    def all_files(self) -> list[StoredFile]:
        """Return every file of the batch."""
        return [*self.files.values(), *self.sidecars.values()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDescription:
    """The properties of a run that do not change while it is running.

    Attributes:
        run_id: id of the run; None if the folder does not say.
        model_name: name of the model, as it was given to the run.
        hook_points: captured hook points.
        hidden_dim: width of the residual stream.
        file_format: format of the batches, a name in `FORMATS`.
        dtype: dtype of the stored activations; None if the folder does not say.
        special_token_ids: ids of the special tokens; None if the folder does not say.
    """

    run_id: str | None
    model_name: str
    hook_points: tuple[str, ...]
    hidden_dim: int
    file_format: str
    dtype: str | None
    special_token_ids: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How much of a run exists.

    Attributes:
        sequences: number of samples that have rows; None if the folder does not say.
        complete: whether all batches exist; None if the folder does not say.
        statistics: statistics of each hook point, as `summary_of` returns them.
    """

    sequences: int | None
    complete: bool | None
    statistics: Mapping[str, Mapping[str, Any]]


class RunContents(Protocol):
    """A source of the list of a run's batches."""

    storage: Storage
    description: RunDescription

    def new_batches(self, hook_points: Sequence[str], known: Collection[int]) -> list[StoredBatch]:
        """Return the batches with rows whose ids are not in `known`, in ascending order.

        Raises:
            StoreError: a record or list is damaged, or the hook points do not have the same
                batches.
        """
        ...

    def progress(self) -> RunProgress:
        """Return the progress of the run, over the batches returned so far."""
        ...

    def vocabulary(self) -> Vocabulary:
        """Return the text of the token ids in the batches returned so far; empty if unknown."""
        ...


class CommittedRun:
    """A run with commit records, finished or not.

    Args:
        storage: storage of the run.
        identity: identity of the run.
    """

    def __init__(self, storage: Storage, identity: RunIdentity):
        self.storage = storage
        self.description = RunDescription(
            run_id=identity.run_id,
            model_name=identity.model_name,
            hook_points=identity.hook_points,
            hidden_dim=identity.hidden_dim,
            file_format=known_format(identity.file_format, RUN_FILE),
            dtype=identity.dtype,
            special_token_ids=token_ids(identity.run),
        )
        self._identity = identity
        self._log = CommitLog(storage)
        self._totals = RunTotals()
        self._without_rows: set[int] = set()

    @collector_paused()
    def new_batches(self, hook_points: Sequence[str], known: Collection[int]) -> list[StoredBatch]:
        """See `RunContents.new_batches`."""
        new = sorted(self._log.batch_ids().difference(known, self._without_rows))
        batches = []
        for record in self._log.read_all(new):
            if record.n_rows:
                batches.append(_committed_batch(record, hook_points))
            else:
                self._without_rows.add(record.batch_id)
            self._totals.add(record)
        return batches

    def vocabulary(self) -> Vocabulary:
        """See `RunContents.vocabulary`."""
        return self._totals.vocabulary

    def progress(self) -> RunProgress:
        """See `RunContents.progress`."""
        return RunProgress(
            sequences=self._totals.n_sequences,
            complete=len(self._totals) == planned_batches(self.storage, self._identity),
            statistics={
                hook: summary_of(self._totals.statistics(hook))
                for hook in self._identity.hook_points
            },
        )


def _committed_batch(record: CommitRecord, hook_points: Sequence[str]) -> StoredBatch:
    def stored(file: CommittedFile) -> StoredFile:
        return StoredFile(name=file.file, bytes=file.bytes, crc32c=file.crc32c)

    missing = [hook for hook in hook_points if hook not in record.files]
    if type(record.n_rows) is not int or record.n_rows < 0 or missing:
        raise StoreError(
            f"the commit record of batch {record.batch_id} is damaged: it has {record.n_rows!r}"
            f" rows and lacks files of {missing}"
        )
    return StoredBatch(
        batch_id=record.batch_id,
        rows=record.n_rows,
        files={hook: stored(record.files[hook]) for hook in hook_points},
        sidecars={h: stored(record.sidecars[h]) for h in hook_points if h in record.sidecars},
    )


def chosen_hook_points(
    layer: int | str | Iterable[int | str] | None, captured: Sequence[str], address: str
) -> dict[str, str]:
    """Return the hook points that a user asks for: name in the run to the name asked for.

    Args:
        layer: a block's number, any name of a hook point, several of them, or None for the run's
            only hook point.
        captured: names of all hook points in the run.
        address: address of the run.

    Raises:
        StoreError: there is no such hook point (the message names similar ones), one is named
            twice, or None is given for a run with several.
    """
    there = f"{address} has {few(captured)}"
    if layer is None:
        if len(captured) != 1:
            raise StoreError(f"the argument layer is needed; {there}")
        return {captured[0]: captured[0]}
    asked = [layer] if isinstance(layer, str) or not isinstance(layer, Iterable) else list(layer)
    if not asked:
        raise StoreError(f"the list of layers is empty; {there}")
    known = spellings(captured)
    chosen: dict[str, str] = {}
    for name in (entry if isinstance(entry, str) else _layer_name(entry) for entry in asked):
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise StoreError(f"there is no {name}; {hint}{there}")
        if known[name] in chosen:
            raise StoreError(f"a layer is given twice: {chosen[known[name]]}, {name}")
        chosen[known[name]] = name
    return chosen


def _layer_name(layer: Any) -> str:
    try:
        return f"layer_{operator.index(layer)}"
    except TypeError:
        raise StoreError(f"a layer is a number or a hook point's name, not {layer!r}") from None


def token_ids(run: Any) -> tuple[int, ...] | None:
    """Return the special token ids that a run's settings record; None if it records none."""
    ids = run.get("special_token_ids") if isinstance(run, Mapping) else None
    return tuple(ids) if isinstance(ids, list | tuple) and all(map(is_count, ids)) else None


def known_format(name: Any, place: str) -> str:
    """Return a format's name found in the file `place`; raise StoreError if it is unknown."""
    if name not in FORMATS:
        raise StoreError(f"{place} names the format {name!r}; known are {', '.join(FORMATS)}")
    return name
