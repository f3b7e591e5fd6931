"""What a run's folder holds, before any batch is read.

The commit records tell it. A folder that came without its `_run/`, or that founding document 004's
own code wrote, is read by `listed_run`.
"""

import dataclasses
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from extraction.errors import StoreError
from extraction.formats import FORMATS
from extraction.hook_point_names import few, nearest, spellings
from extraction.reading.collector_pause import collector_paused
from extraction.run.identity import RunIdentity
from extraction.run.large_norms import summary_of
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run.totals import RunTotals
from extraction.run_layout import RUN_FILE
from extraction.storage import Storage
from extraction.writing.finalise import planned_batches


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file of a batch.

    Attributes:
        name: in the run's folder.
        bytes: its size; None: nobody noted it.
        crc32c: of its content, eight hexadecimal digits; None: nobody noted it.
    """

    name: str
    bytes: int | None = None
    crc32c: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredBatch:
    """One batch of the hook points that are read.

    Attributes:
        batch_id: its number.
        rows: of each hook point.
        files: of each hook point.
        sidecars: second files, for formats that have one.
    """

    batch_id: int
    rows: int
    files: Mapping[str, StoredFile]
    sidecars: Mapping[str, StoredFile]

    def all_files(self) -> list[StoredFile]:
        """Every file of the batch."""
        return [*self.files.values(), *self.sidecars.values()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What stays the same while a run goes on.

    Attributes:
        run_id: of the run; None: the folder does not tell.
        model_name: as it was given to the run.
        hook_points: that were captured.
        hidden_dim: width of the residual stream.
        file_format: of the batches, a name in `FORMATS`.
        dtype: that activations are stored in; None: the folder does not tell.
    """

    run_id: str | None
    model_name: str
    hook_points: tuple[str, ...]
    hidden_dim: int
    file_format: str
    dtype: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run has come.

    Attributes:
        sequences: samples that have rows; None: the folder does not tell.
        complete: whether no batch will follow; None: the folder does not tell.
        statistics: of each hook point, as `summary_of` gives them.
    """

    sequences: int | None
    complete: bool | None
    statistics: Mapping[str, Mapping[str, Any]]


class RunContents(Protocol):
    """Where the batches of a run are told of."""

    storage: Storage
    description: RunDescription

    def new_batches(self, hook_points: Sequence[str], known: Collection[int]) -> list[StoredBatch]:
        """The batches with rows whose ids are not among `known`, in ascending order.

        Raises:
            StoreError: what tells of them is damaged, or the hook points do not hold the same
                batches.
        """
        ...

    def progress(self) -> RunProgress:
        """Of the batches that were given."""
        ...


class CommittedRun:
    """A run with its commit records, finished or not.

    Args:
        storage: of the run.
        identity: of the run.
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
            f"the commit record of batch {record.batch_id} is damaged: {record.n_rows!r} rows,"
            f" no file of {missing}"
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
    """Map the hook points that a user asks for, by their names in the run, to the names asked with.

    Args:
        layer: a block's number, any name of a hook point, several of them, or None for the only
            one.
        captured: names in the run of all that there are.
        address: of the run.

    Raises:
        StoreError: there is no such one (the nearest are named), it is named twice, or none is
            named of several.
    """
    there = f"{address} has {few(captured)}"
    if layer is None:
        if len(captured) != 1:
            raise StoreError(f"name a layer; {there}")
        return {captured[0]: captured[0]}
    asked = [layer] if isinstance(layer, str) or not isinstance(layer, Iterable) else list(layer)
    if not asked:
        raise StoreError(f"there is no layer to read; {there}")
    known = spellings(captured)
    chosen: dict[str, str] = {}
    for name in (entry if isinstance(entry, str) else _layer_name(entry) for entry in asked):
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise StoreError(f"there is no {name}; {hint}{there}")
        if known[name] in chosen:
            raise StoreError(f"a layer is named twice: {chosen[known[name]]}, {name}")
        chosen[known[name]] = name
    return chosen


def _layer_name(layer: Any) -> str:
    try:
        return f"layer_{operator.index(layer)}"
    except TypeError:
        raise StoreError(f"a layer is a number or a hook point's name, not {layer!r}") from None


def known_format(name: Any, place: str) -> str:
    """A format's name from the file `place`, or raises StoreError: there is no such format."""
    if name not in FORMATS:
        raise StoreError(
            f"{place} names the format {name!r}, which is none of {', '.join(FORMATS)}"
        )
    return name
