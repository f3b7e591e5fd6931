"""Check that keys are unique in a run of any size, with eight bytes of memory for each.

Each key is hashed to 64 bits. If two hashes are equal, the keys themselves are read again and
compared, so a collision is never reported as a duplicate.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from extraction.run.rows import UNKNOWN, RowBlock

BatchT = TypeVar("BatchT")
Key = tuple
SequenceKey = tuple[str, int]

REPORTED = 100
"""Most pairs of batches with equal hashes whose keys are read and reported."""

_UNKNOWN_PLACES = 1 << 40
"""Added to a step that replaces an unknown position, so that it equals no position."""


def row_keys(block: RowBlock) -> list[Key]:
    """Return `(task_id, sample_idx, position)` of each row; "step 3" if its position is unknown."""
    places = [
        f"step {step}" if position == UNKNOWN else position
        for step, position in zip(block.step.tolist(), block.position.tolist(), strict=True)
    ]
    return list(zip(block.task_ids.tolist(), block.sample_idx.tolist(), places, strict=True))


def row_hashes(block: RowBlock) -> np.ndarray:
    """Return `[R]` uint64, the hash of each of `row_keys`."""
    position = block.position.astype(np.int64)
    place = np.where(position == UNKNOWN, _UNKNOWN_PLACES + block.step.astype(np.int64), position)
    return _mixed(sequence_hashes(block) + _mixed(place.view(np.uint64)))


def sequence_hashes(block: RowBlock) -> np.ndarray:
    """Return `[R]` uint64, the hash of each row's `(task_id, sample_idx)`."""
    return text_hashes(block.task_ids.tolist(), block.sample_idx)


def text_hashes(texts: Sequence[str], numbers: np.ndarray | Sequence[int]) -> np.ndarray:
    """Return `[R]` uint64, the hash of each pair of a text and a number."""
    distinct = {text: _text_hash(text) for text in dict.fromkeys(texts)}
    hashed = np.array([distinct[text] for text in texts], np.uint64)
    return _mixed(hashed + _mixed(np.asarray(numbers, np.int64).view(np.uint64)))


def _text_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser, a bijection of uint64 whose outputs look random."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class KeyIndex(Generic[BatchT]):
    """The hashes of the keys of many batches, in which duplicates are found."""

    def __init__(self) -> None:
        self._batches: list[BatchT] = []
        self._hashes: list[np.ndarray] = []

    def add(self, batch: BatchT, hashes: np.ndarray) -> None:
        """Add the hashes of a batch's keys, in order."""
        self._batches.append(batch)
        self._hashes.append(hashes)

    def distinct(self) -> int:
        """Return the number of distinct hashes."""
        return len(np.unique(np.concatenate([np.zeros(0, np.uint64), *self._hashes])))

    def duplicates(
        self, keys_of: Callable[[BatchT], Sequence[Key]]
    ) -> Iterator[tuple[Key, BatchT, BatchT, int]]:
        """Yield the pairs of batches that share a key; a batch that repeats one pairs with itself.

        Args:
            keys_of: returns a batch's keys, in the order of their hashes.

        Yields:
            One of the keys, the two batches (the earlier first), and the number of shared keys; at
            most `REPORTED` pairs.
        """
        if not self._hashes:
            return
        hashes = np.concatenate(self._hashes)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        if not len(again):
            return
        ends = np.cumsum([len(part) for part in self._hashes])
        firsts = np.searchsorted(ends, order[again], side="right")
        seconds = np.searchsorted(ends, order[again + 1], side="right")
        pairs = np.unique(np.stack([firsts, seconds], axis=1), axis=0)
        for first, second in pairs[:REPORTED].tolist():
            keys = keys_of(self._batches[second])
            if first == second:
                shared = _again(keys)
            else:
                known = set(keys_of(self._batches[first]))
                shared = [key for key in keys if key in known]
            if shared:
                yield shared[0], self._batches[first], self._batches[second], len(shared)


def _again(keys: Iterable[Key]) -> list[Key]:
    """Return the keys that occur a second time."""
    seen: set[Key] = set()
    again = []
    for key in keys:
        if key in seen:
            again.append(key)
        seen.add(key)
    return again
