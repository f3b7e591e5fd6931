"""The tokens around chosen rows, and a latent's activations on them: a second, targeted read.

All rows of a sample are in one stored batch, so the tokens around a row are found in its own file,
and where the run has output lines also among tokens that have no rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extraction.interruption import stop_flag
from extraction.maintenance.committed_files import read_outputs, read_record
from extraction.progress import Progress
from extraction.reading.dataset import ActivationDataset
from extraction.reading.kept_files import KeptFile
from extraction.reading.row_filters import RowFilters
from extraction.report.samples import token_ids_of
from extraction.run.identity import RunIdentity, read_identity
from extraction.run.records import CommitLog
from extraction.run.rows import UNKNOWN, RowBlock
from extraction.storage import Storage
from sae.autoencoder import SparseAutoencoder
from sae.latents.examples import Examples
from sae.scores.of_rows import encoded


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """Tokens around each of E examples.

    Attributes:
        before: slot of the row's own token.
        token_ids: `[E, W]` int32, tokens by position; `UNKNOWN` where there is none, or it is not
            known.
        activations: `[E, W]` float32, the latent's activations; NaN where the run has no row.
        task_ids: `[E]` object array of str, task of the row.
        sample_idx: `[E]` int64, number of the sample within the task.
        position: `[E]` int64, position of the token; `UNKNOWN` if it is not recorded.
    """

    before: int
    token_ids: np.ndarray
    activations: np.ndarray
    task_ids: np.ndarray
    sample_idx: np.ndarray
    position: np.ndarray

    def window(self, example: int) -> slice:
        """Return the slots of an example without those beyond the sample's ends."""
        known = self.token_ids[example] != UNKNOWN
        known[self.before] = True
        places = np.flatnonzero(known)
        return slice(int(places[0]), int(places[-1]) + 1)


class _Lines:
    """The output lines of a run's batches, where there are any."""

    def __init__(self, storage: Storage, identity: RunIdentity | None):
        self._storage, self._identity = storage, identity
        self._log = CommitLog(storage)

    def of(self, batch_id: int) -> Mapping[tuple[str, int], Sequence[int]]:
        """Return the token ids of each sample of a batch, by task and sample."""
        if self._identity is None:
            return {}
        record = read_record(self._log, self._identity, batch_id)
        if record.outputs is None:
            return {}
        found = {
            (line["task_id"], line["sample_idx"]): token_ids_of(line)
            for line in read_outputs(self._storage, record.outputs)
        }
        return {key: ids for key, ids in found.items() if ids is not None}


def contexts_of(
    examples: Examples,
    numbers: np.ndarray,
    sae: SparseAutoencoder,
    dataset: ActivationDataset,
    storage: Storage,
    context: int,
    progress: Progress,
) -> Contexts:
    """Return the tokens around examples.

    Args:
        examples: rows of latents.
        numbers: `[L]`, number of each latent of the examples in the autoencoder.
        sae: the autoencoder.
        dataset: rows of its hook point.
        storage: storage of the run.
        context: tokens before a row's own; half as many follow.
        progress: told about examples.

    Raises:
        CorruptBatchError: a file is damaged.
    """
    size, width = len(examples), context + 1 + context // 2
    found = Contexts(
        before=context,
        token_ids=np.full((size, width), UNKNOWN, np.int32),
        activations=np.full((size, width), np.nan, np.float32),
        task_ids=np.full(size, "", object),
        sample_idx=np.zeros(size, np.int64),
        position=np.full(size, UNKNOWN, np.int64),
    )
    order = np.argsort(examples.rows, kind="stable")
    sorted_rows = examples.rows[order]
    lines = _Lines(storage, read_identity(storage))
    done = 0
    with stop_flag() as stop:
        for file in dataset.kept_files(RowFilters(), only=sorted_rows):
            stop.check()
            mine = order[slice(*np.searchsorted(sorted_rows, (file.first, file.end)))]
            own = examples.rows[mine] - file.first
            near = near_rows(file.keys, own, context, width)
            _fill_keys(found, mine, own, near, file.keys, lines.of(file.batch_id))
            latents = numbers[examples.latents[mine]]
            found.activations[mine] = _activations(sae, file, near, latents)
            found.activations[mine, context] = examples.values[mine]
            done += len(mine)
            progress("rows shown", done, size)
    return found


def near_rows(keys: RowBlock, own: np.ndarray, before: int, width: int) -> np.ndarray:
    """Return the rows of the tokens around rows, of the same samples.

    Args:
        keys: keys of R rows.
        own: `[E]`, numbers of rows among them.
        before: slot of the row's own token.
        width: number of slots.

    Returns:
        `[E, width]` int64, numbers of rows; -1 where there is none.
    """
    tasks = keys.distinct_task_ids.index
    position = keys.position.astype(np.int64)
    order = np.lexsort((position, keys.sample_idx, tasks))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    at = place[own][:, None] + np.arange(-before, width - before)
    inside = (at >= 0) & (at < len(order))
    other = order[np.clip(at, 0, len(order) - 1)]
    mine = own[:, None]
    inside &= (tasks[other] == tasks[mine]) & (keys.sample_idx[other] == keys.sample_idx[mine])
    slot = position[other] - position[mine] + before
    inside &= (slot >= 0) & (slot < width) & (position[other] >= 0)
    near = np.full((len(own), width), -1, np.int64)
    example, _ = np.nonzero(inside)
    near[example, slot[inside]] = other[inside]
    near[:, before] = own  # also where positions are not recorded
    return near


def _fill_keys(
    found: Contexts,
    mine: np.ndarray,
    own: np.ndarray,
    near: np.ndarray,
    keys: RowBlock,
    ids_of_samples: Mapping[tuple[str, int], Sequence[int]],
) -> None:
    found.task_ids[mine] = keys.task_ids[own]
    found.sample_idx[mine] = keys.sample_idx[own]
    found.position[mine] = keys.position[own]
    found.token_ids[mine] = np.where(near >= 0, keys.token_id[near], UNKNOWN)
    width = near.shape[1]
    for example, row in zip(mine.tolist(), own.tolist(), strict=True):
        position = int(keys.position[row])
        ids = ids_of_samples.get((str(keys.task_ids[row]), int(keys.sample_idx[row])))
        if ids is None or not 0 <= position < len(ids):
            continue
        first = position - found.before
        shown = ids[max(0, first) : first + width]
        start = max(0, -first)
        there = found.token_ids[example, start : start + len(shown)]
        there[:] = np.where(there == UNKNOWN, shown, there)


def _activations(
    sae: SparseAutoencoder, file: KeptFile, near: np.ndarray, latents: np.ndarray
) -> np.ndarray:
    """Return the activations `[E, W]` of each example's latent; NaN where there is no row."""
    values = np.full(near.shape, np.nan, np.float32)
    example, slot = np.nonzero(near >= 0)
    wanted, place = np.unique(near[example, slot], return_inverse=True)
    order = np.argsort(place, kind="stable")
    (rows,) = file.rows.values()
    for part, found, _ in encoded(sae, rows[wanted]):
        pairs = order[slice(*np.searchsorted(place[order], (part.start, part.stop)))]
        values[example[pairs], slot[pairs]] = found[
            place[pairs] - part.start, latents[example[pairs]]
        ]
    return values


def known_ids(contexts: Contexts) -> np.ndarray:
    """Return the distinct token ids of contexts, ascending, without `UNKNOWN`."""
    ids: Any = np.unique(contexts.token_ids)
    return ids[ids != UNKNOWN]
