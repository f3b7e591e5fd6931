"""Which sample each row of a run belongs to, and its index within the sample.

In memory: about forty bytes for each row, and the keys of the samples; no activations.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from extraction.errors import StoreError
from extraction.progress import Progress, silent
from extraction.reading.dataset import ActivationDataset
from extraction.run.rows import UNKNOWN

STEP = 1 << 16
"""Rows whose keys are read at a time."""

NAMED = 5
"""Most samples that a message names."""

SampleKey = tuple[str, int]
"""`(task_id, sample_idx)`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """N samples of a run that have rows, in the order of their first rows, and their R rows.

    Attributes:
        numbers: each sample's number from 0, by its key, in order.
        rows: `[N]` int64, number of rows of each sample.
        sample: `[R]` int64, the number of each row's sample.
        slot: `[R]` int64, index of each row within its sample, in order of position.
        position: `[R]` int32, -1 where it is not known.
        token_id: `[R]` int32, -1 where it is not known.
    """

    numbers: Mapping[SampleKey, int]
    rows: np.ndarray
    sample: np.ndarray
    slot: np.ndarray
    position: np.ndarray
    token_id: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def task_ids(self) -> list[str]:
        """Task id of each sample."""
        return [task_id for task_id, _ in self.numbers]

    @property
    def sample_idx(self) -> np.ndarray:
        """`[N]` int64, number of each sample within its task."""
        return np.array([number for _, number in self.numbers], np.int64)

    def places(self) -> np.ndarray:
        """Return `[R]` int64: index of each row when rows are sorted by sample and position."""
        first = np.cumsum(self.rows) - self.rows
        return first[self.sample] + self.slot

    def named(self, which: np.ndarray) -> str:
        """Return the names of some samples, for a message.

        Args:
            which: `[N]` bool.
        """
        keys = list(self.numbers)
        found = np.flatnonzero(which).tolist()
        names = ", ".join(f"{keys[n][0]} (sample_idx {keys[n][1]})" for n in found[:NAMED])
        return names + (f" and {len(found) - NAMED:,} more" if len(found) > NAMED else "")


def samples_of(
    dataset: ActivationDataset,
    progress: Progress = silent,
    chosen: np.ndarray | None = None,
) -> Samples:
    """Return the samples of a run; read the files of one hook point.

    Args:
        dataset: rows of that hook point.
        progress: called with the progress of reading.
        chosen: `[R]` int64, ascending numbers of the rows to take; None for all.

    Raises:
        StoreError: two rows of a sample have the same position.
        CorruptBatchError: a file is damaged.
    """
    total = len(dataset) if chosen is None else len(chosen)
    numbers: dict[SampleKey, int] = {}
    sample = np.empty(total, np.int64)
    step, position, token_id = (np.empty(total, np.int32) for _ in range(3))
    for first in range(0, total, STEP):
        chunk = slice(first, min(first + STEP, total))
        keys = dataset.keys(chunk if chosen is None else chosen[chunk])
        pairs = zip(keys.task_ids.tolist(), keys.sample_idx.tolist(), strict=True)
        sample[chunk] = [numbers.setdefault(pair, len(numbers)) for pair in pairs]
        step[chunk], position[chunk], token_id[chunk] = keys.step, keys.position, keys.token_id
        progress("keys read", chunk.stop, total)
    rows = np.bincount(sample, minlength=len(numbers))
    order = np.lexsort((step, position, sample))  # stable: else the order of the run
    slot = np.empty(total, np.int64)
    slot[order] = np.arange(total) - np.repeat(np.cumsum(rows) - rows, rows)
    samples = Samples(
        numbers=numbers, rows=rows, sample=sample, slot=slot, position=position, token_id=token_id
    )
    _refuse_doubles(samples, order)
    return samples


def refuse_unknown_positions(samples: Samples, needed: str) -> None:
    """Refuse rows without a position.

    Args:
        samples: the samples of the rows.
        needed: for the message: what needs positions, and what does not.

    Raises:
        StoreError: a row has none.
    """
    lost = samples.position == UNKNOWN
    if lost.any():
        which = np.zeros(len(samples), bool)
        which[samples.sample[lost]] = True
        raise StoreError(f"rows of {samples.named(which)} have no position, which {needed}")


def _refuse_doubles(samples: Samples, order: Sequence[int] | np.ndarray) -> None:
    sample, position = samples.sample[order], samples.position[order]
    same = (sample[1:] == sample[:-1]) & (position[1:] == position[:-1])
    same &= position[1:] != UNKNOWN
    if same.any():
        which = np.zeros(len(samples), bool)
        which[sample[1:][same]] = True
        raise StoreError(
            f"several rows have the same position in {samples.named(which)};"
            f" `python -m extraction verify RUN --level 3` names their batches"
        )
