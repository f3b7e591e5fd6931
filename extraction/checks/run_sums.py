"""What `metadata.json` is derived from, small enough for a run of a million files."""

import dataclasses
import math
from array import array
from collections import Counter

from extraction.commit_log import CommitRecord, CommittedFile
from extraction.statistics import RowStatistics


@dataclasses.dataclass
class _Sums:
    """The statistics of one hook point; the parts of what `math.fsum` adds."""

    rows: int = 0
    nonfinite_rows: int = 0
    values: int = 0
    totals: array = dataclasses.field(default_factory=lambda: array("d"))
    squares: array = dataclasses.field(default_factory=lambda: array("d"))
    norms: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, part: RowStatistics) -> None:
        self.rows += part.rows
        self.nonfinite_rows += part.nonfinite_rows
        self.values += part.values
        self.totals.append(part.total)
        self.squares.append(part.total_squares)
        self.norms.update(part.norms)

    def statistics(self) -> RowStatistics:
        return RowStatistics(
            rows=self.rows,
            nonfinite_rows=self.nonfinite_rows,
            values=self.values,
            total=math.fsum(self.totals),
            total_squares=math.fsum(self.squares),
            norms=dict(self.norms),
        )


class RunSums:
    """Records without what only their own batch's check needs."""

    def __init__(self) -> None:
        self.records: list[CommitRecord] = []
        """Without checksums and statistics, in the order in which they came."""
        self._sums: dict[str, _Sums] = {}

    def add(self, record: CommitRecord) -> None:
        """Takes a record."""
        for hook, part in record.statistics.items():
            self._sums.setdefault(hook, _Sums()).add(part)
        self.records.append(
            dataclasses.replace(
                record,
                keys_sha256="",
                files={hook: _name_only(file) for hook, file in record.files.items()},
                sidecars={},
                outputs=None,
                statistics={},
                written_at="",
            )
        )

    def for_document(self, *, list_files: bool = True) -> list[CommitRecord]:
        """Records of which `derived_document` makes the same as of those that were added: the
        first holds the statistics of all.

        Args:
            list_files: False: as if no batch had files.
        """
        records = list(self.records)
        if not list_files:
            records = [dataclasses.replace(record, files={}) for record in records]
        if records:
            merged = {hook: sums.statistics() for hook, sums in self._sums.items()}
            records[0] = dataclasses.replace(records[0], statistics=merged)
        return records


def _name_only(file: CommittedFile) -> CommittedFile:
    return CommittedFile(file=file.file, bytes=0, crc32c="", sha256="")
