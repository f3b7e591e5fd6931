"""Totals over all commit records of a run.

A record takes about ten kilobytes of memory, most of it statistics, and a run may have hundreds of
thousands of records. So only the fields that `metadata.json` lists are kept of each.
"""

import dataclasses
import sys
from collections.abc import Iterable

from extraction.run.records import CommitLog, CommitRecord
from extraction.run.statistics import RowStatistics, StatisticsSum


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BatchSummary:
    """The fields of a commit record that are kept.

    Attributes:
        batch_id: see `CommitRecord`.
        n_rows: see `CommitRecord`.
        files: names of the files, by hook point.
    """

    batch_id: int
    n_rows: int
    files: dict[str, str]


class RunTotals:
    """Sums over the commit records of a run; their order does not matter.

    Args:
        records: records to add first.

    Attributes:
        n_rows: number of rows of each hook point.
        n_sequences: number of samples that have rows.
        n_files: number of files that the records name.
        n_bytes: bytes of those files.
        n_activation_files: number of those files without output lines.
        n_activation_bytes: bytes of the files without output lines.
        vocabulary: text of the token ids that occur; empty if it is not recorded.
        last_written_at: the latest time in the records, ISO 8601; "" without records.
    """

    def __init__(self, records: Iterable[CommitRecord] = ()):
        self.n_rows = self.n_sequences = self.n_files = self.n_bytes = 0
        self.n_activation_files = self.n_activation_bytes = 0
        self.last_written_at = ""
        self.vocabulary: dict[int, bytes] = {}
        self._batches: dict[int, BatchSummary] = {}
        self._statistics: dict[str, StatisticsSum] = {}
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        return len(self._batches)

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self._batches

    def add(self, record: CommitRecord) -> None:
        """Add a record; one whose batch was added already changes nothing."""
        if record.batch_id in self._batches:
            return
        activations, files = record.activation_files(), record.all_files()
        self.n_rows += record.n_rows
        self.n_sequences += record.n_sequences
        self.n_files += len(files)
        self.n_bytes += sum(file.bytes for file in files)
        self.n_activation_files += len(activations)
        self.n_activation_bytes += sum(file.bytes for file in activations)
        self.last_written_at = max(self.last_written_at, record.written_at)
        for token_id, text in (record.vocabulary or {}).items():
            self.vocabulary.setdefault(token_id, text)
        for hook, part in record.statistics.items():
            if hook not in self._statistics:
                self._statistics[hook] = StatisticsSum()
            self._statistics[hook].add(part)
        self._batches[record.batch_id] = BatchSummary(
            batch_id=record.batch_id,
            n_rows=record.n_rows,
            files={sys.intern(hook): file.file for hook, file in record.files.items()},
        )

    def read_new(self, log: CommitLog) -> set[int]:
        """Read and add the records that are missing; return the ids of all records in the log."""
        ids = log.batch_ids()
        for record in log.read_all(sorted(ids - self._batches.keys())):
            self.add(record)
        return ids

    def batches(self) -> list[BatchSummary]:
        """Return the summaries of all records, by batch id."""
        return [self._batches[batch_id] for batch_id in sorted(self._batches)]

    def statistics(self, hook_point: str) -> RowStatistics:
        """Return the statistics of all rows of a hook point."""
        return self._statistics.get(hook_point, StatisticsSum()).total()
