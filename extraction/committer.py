"""From the rows of a unit to a batch that exists: serialise, publish, record.

The files come first and the record last, so a process that dies in between leaves files that
nobody counts; the next attempt at the unit replaces them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from extraction.commit_log import CommitLog, CommitRecord, CommittedFile
from extraction.extractor import timestamp
from extraction.formats import FORMATS
from extraction.rows import RowBlock
from extraction.storage import Storage


class Committer:
    """Writes units.

    Args:
        storage: of the run.
        hook_points: names, in the order of their files.
        file_format: a name in `FORMATS`.
    """

    def __init__(self, storage: Storage, hook_points: Sequence[str], file_format: str = "pickle"):
        self._storage = storage
        self._hook_points = tuple(hook_points)
        self._format = FORMATS[file_format]
        self._log = CommitLog(storage)

    def commit(
        self, batch_id: int, block: RowBlock | None, outputs: Sequence[Mapping[str, Any]]
    ) -> CommitRecord:
        """Writes the files of a unit and its record; afterwards the batch exists.

        Args:
            batch_id: of the unit, from 1.
            block: its rows; None if it has none.
            outputs: the output lines of its samples, skipped ones among them.
        """
        files = {}
        if block is not None:
            for hook in self._hook_points:
                name = f"{hook}_batch_{batch_id:06d}.{self._format.extension}"
                files[hook] = self._publish(name, self._format.serialise(hook, block))
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in outputs)
        record = CommitRecord(
            batch_id=batch_id,
            n_rows=0 if block is None else len(block),
            n_sequences=0 if block is None else _count_sequences(block),
            keys_sha256=keys_digest(block),
            files=files,
            outputs=self._publish(f"_run/outputs/{batch_id:06d}.jsonl", lines.encode()),
            written_at=timestamp(),
        )
        self._log.put(record)
        return record

    def _publish(self, name: str, data: bytes) -> CommittedFile:
        self._storage.replace(name, data)
        return CommittedFile(
            file=name,
            bytes=len(data),
            crc32c=f"{google_crc32c.value(data):08x}",
            sha256=hashlib.sha256(data).hexdigest(),
        )


def keys_digest(block: RowBlock | None) -> str:
    """sha256 over the keys of the rows, in order."""
    digest = hashlib.sha256()
    if block is not None:
        digest.update(json.dumps(block.task_ids.tolist()).encode())
        for column in (block.sample_idx, block.step, block.position, block.token_id):
            digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def _count_sequences(block: RowBlock) -> int:
    return len(set(zip(block.task_ids, block.sample_idx.tolist(), strict=True)))
