"""Batches of rows for torch's DataLoader. Importing this module imports torch."""

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from extraction.errors import StoreError
from extraction.reading import batch_stream

if TYPE_CHECKING:
    from extraction.reading.dataset import ActivationDataset

POSITION_VERSION = 1

COUNTS = ("version", "batch_size", "workers", "epoch", "given")
"""Fields of a position that are whole numbers."""

OF_STREAM = ("run_id", "batches", "rows", "shuffle_seed", "pool_rows")
"""Fields of a position that are those of a `BatchStream`."""


class TorchBatches(IterableDataset):
    """Batches of a run as tensors; `ActivationDataset.torch` explains it.

    Worker w of n reads part w of n of the files (see `row_order`). The DataLoader takes a batch
    from each worker in turn, and passes over workers that have no more. So the number of batches
    that it yielded determines the rows, and a position is that number.

    Args:
        dataset: dataset of the rows; it must be picklable for worker processes.
        batch_size: rows of a batch.
        asked: further arguments of `ActivationDataset.batches` that decide the order.
        start: a `position`, to continue from there.
        countable: whether the number of batches determines the rows: no damaged file is skipped.

    Raises:
        StoreError: an argument is wrong, or the position is of another run or of other settings.
    """

    def __init__(
        self,
        dataset: "ActivationDataset",
        batch_size: int,
        asked: Mapping[str, Any],
        start: Mapping[str, Any] | None,
        *,
        countable: bool,
    ):
        self._dataset = dataset
        self._asked = dict(asked)
        self._countable = countable
        self._start = None if start is None else _checked(start)
        known = self._start and {
            **{name: self._start[name] for name in OF_STREAM},
            **{"version": batch_stream.POSITION_VERSION, "epoch": 0, "row": 0},
        }
        stream = dataset.batches(batch_size, **asked, start=known)
        self._order, self._known = stream.order, stream.position
        self._batch_size = operator.index(batch_size)
        if self._start:
            batch_stream.refuse_other_position(self._start, self._settings(), "other batches")
        # Shared with workers that live for several epochs (persistent_workers=True).
        first = self._start["epoch"] if self._start else 0
        self._epoch = torch.tensor(first, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of the passes that begin from now on.

        The epoch of `start` begins at that position, every other epoch at its first row.
        """
        self._epoch.fill_(epoch)

    def __repr__(self) -> str:
        seed = self._asked.get("shuffle_seed")
        return (
            f"TorchBatches(batches of {self._batch_size:,} of {self._dataset!r},"
            f" shuffle_seed={seed}, epoch {int(self._epoch)})"
        )

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        index, parts = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch, lengths, given = self._pass(parts)
        counts, following = _by_turns(lengths, given)
        # The loader begins with worker 0, so worker 0 takes the part whose turn it is.
        part = (following + index) % parts
        share = dataclasses.replace(self._order, part=(part, parts))
        with self._dataset.batches(
            self._batch_size,
            **self._asked,
            framework="torch",
            epochs=epoch + 1,
            part=share.part,
            start=self._known
            | ({} if parts == 1 else {"part": [part, parts]})
            | {"epoch": epoch, "row": min(counts[part] * self._batch_size, share.rows(epoch))},
        ) as stream:
            yield from stream

    def position(self, given: int, num_workers: int) -> dict[str, Any]:
        """Return the position after some batches of a pass, to be kept as JSON.

        Args:
            given: number of batches that the loader yielded in this pass.
            num_workers: that of the loader; to continue within the epoch, it must stay the same.

        Raises:
            StoreError: the epoch has fewer batches; or damaged files are skipped, so that the
                number of batches does not determine the rows.
        """
        if not self._countable:
            raise StoreError(
                "position() needs on_bad='raise' and no filters, since skipped rows are not counted"
            )
        parts = max(1, operator.index(num_workers))
        epoch, lengths, before = self._pass(parts)
        total, whole = before + operator.index(given), sum(lengths)
        if not before <= total <= whole:
            raise StoreError(f"given is too large: epoch {epoch} has {whole} batches, not {total}")
        return {
            "version": POSITION_VERSION,
            **{name: self._known[name] for name in OF_STREAM},
            **self._settings(),
            "workers": parts,
            "epoch": epoch + (total == whole),
            "given": 0 if total == whole else total,
        }

    def _settings(self) -> dict[str, Any]:
        """Return the fields that a position must share with the batches, besides the stream's."""
        return {"batch_size": self._batch_size, "drop_last": bool(self._asked["drop_last"])}

    def _pass(self, parts: int) -> tuple[int, list[int], int]:
        """Return the epoch of a pass, each part's number of batches, and those before the pass."""
        epoch = int(self._epoch)
        shares = [dataclasses.replace(self._order, part=(part, parts)) for part in range(parts)]
        last = 0 if self._asked["drop_last"] else self._batch_size - 1
        lengths = [(share.rows(epoch) + last) // self._batch_size for share in shares]
        if not self._start or self._start["epoch"] != epoch or not self._start["given"]:
            return epoch, lengths, 0
        if self._start["workers"] != parts:
            raise StoreError(
                f"start is a position with num_workers={self._start['workers']}, but it is {parts}"
                f" here; use {self._start['workers']}, or start at the beginning of an epoch"
            )
        if self._start["given"] > sum(lengths):
            raise StoreError(
                f"start is after {self._start['given']} batches of an epoch that has only"
                f" {sum(lengths)}"
            )
        return epoch, lengths, self._start["given"]


def _by_turns(lengths: list[int], given: int) -> tuple[list[int], int]:
    """Return how many of `given` batches come from each part, and the part whose turn is next.

    Parts take turns; a part whose number of batches (`lengths`) is used up is passed over.
    """
    counts, left = [0] * len(lengths), given
    active = [part for part, length in enumerate(lengths) if length]
    while left and left >= len(active):
        rounds = min(left // len(active), *(lengths[part] - counts[part] for part in active))
        for part in active:
            counts[part] += rounds
        left -= rounds * len(active)
        active = [part for part in active if counts[part] < lengths[part]]
    for part in active[:left]:
        counts[part] += 1
    return counts, active[left] if active else 0


def _checked(start: Any) -> Mapping[str, Any]:
    """Return a position whose numbers are valid; the stream compares its other fields."""
    if isinstance(start, Mapping) and set(COUNTS + OF_STREAM) <= set(start):
        numbers = [start[name] for name in COUNTS]
        whole = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        if whole and start["version"] == POSITION_VERSION and start["workers"]:
            return start
    raise StoreError(f"start must be a position of TorchBatches, not {str(start)[:200]}")
