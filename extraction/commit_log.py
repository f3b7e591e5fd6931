"""Commit records: a batch exists when its record does.

One record for each unit of the plan, published last and never replaced, names everything that
belongs to the unit: the file of each hook point and the file of its output lines, with sizes and
checksums. A file that no record names does not exist. `metadata.json` and `outputs.jsonl` are
derived from the records.
"""

import dataclasses
import json
from typing import Any

from extraction.errors import StoreError
from extraction.storage import Storage

COMMITS = "_run/commits/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommittedFile:
    """A file that a record vouches for.

    Attributes:
        file: its name in the run's folder.
        bytes: its size.
        crc32c: of its content, eight hexadecimal digits.
        sha256: of its content, 64 hexadecimal digits.
    """

    file: str
    bytes: int
    crc32c: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """What one unit committed.

    Attributes:
        batch_id: the unit's number plus one.
        n_rows: rows of every hook point.
        n_sequences: samples that have rows.
        keys_sha256: of the rows' keys in order, alike for all hook points.
        files: of each hook point; empty if the unit has no rows.
        outputs: the samples' output lines.
        written_at: when, ISO 8601, UTC; for people, nothing is decided by it.
    """

    batch_id: int
    n_rows: int
    n_sequences: int
    keys_sha256: str
    files: dict[str, CommittedFile]
    outputs: CommittedFile
    written_at: str

    def to_json(self) -> bytes:
        """The record's file."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, name: str) -> "CommitRecord":
        """Reads a record's file.

        Raises:
            StoreError: it is damaged; `name` says which.
        """
        try:
            raw: dict[str, Any] = json.loads(data)
            raw["files"] = {hook: CommittedFile(**file) for hook, file in raw["files"].items()}
            raw["outputs"] = CommittedFile(**raw["outputs"])
            return cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{name} is no commit record: {error!r}") from None


class CommitLog:
    """The records of a run.

    Args:
        storage: of the run.
    """

    def __init__(self, storage: Storage):
        self._storage = storage

    def batch_ids(self) -> set[int]:
        """Batches that exist."""
        names = self._storage.names(COMMITS)
        return {int(name.removeprefix(COMMITS).removesuffix(".json")) for name in names}

    def read(self, batch_id: int) -> CommitRecord:
        """One record."""
        name = _record_name(batch_id)
        return CommitRecord.from_json(self._storage.get(name), name)

    def records(self) -> list[CommitRecord]:
        """All records, by batch id."""
        return [self.read(batch_id) for batch_id in sorted(self.batch_ids())]

    def put(self, record: CommitRecord) -> bool:
        """Makes a batch exist; False if it does already, which changes nothing."""
        try:
            self._storage.put_new(_record_name(record.batch_id), record.to_json())
        except FileExistsError:
            return False
        return True


def _record_name(batch_id: int) -> str:
    return f"{COMMITS}{batch_id:06d}.json"
