"""Commit records: a unit exists when its commit record does.

Each unit of the plan has one commit record. It is published last and never replaced, and it names
the unit's files: one file for each hook point and the file of the output lines, with sizes and
checksums. A file that no commit record names does not count. `metadata.json` and `outputs.jsonl`
are derived from the commit records.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from extraction.checksums import crc32c, sha256
from extraction.documents import is_count, read_json
from extraction.errors import StoreError
from extraction.reading.read_ahead import read_files
from extraction.run.largest_rows import are_sums, columns_of, rows_of_columns
from extraction.run.statistics import BinSums, RowStatistics, is_bin
from extraction.run.vocabulary import Vocabulary, from_document, to_document
from extraction.run_layout import COMMITS, parse_record_name, record_name
from extraction.storage import Content, Storage, pieces
from extraction.storage.bounded import get_listed
from extraction.storage.names import check_hook_point, check_name


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CommittedFile:
    """A file that a commit record names.

    Attributes:
        file: name of the file in the run's folder.
        bytes: size of the file.
        crc32c: crc32c of the content, eight hexadecimal digits.
        sha256: sha256 of the content, 64 hexadecimal digits.
    """

    file: str
    bytes: int
    crc32c: str
    sha256: str

    @classmethod
    def of(cls, name: str, data: Content) -> "CommittedFile":
        """Return the entry of a file with this name and content."""
        size = sum(map(len, pieces(data)))
        return cls(file=name, bytes=size, crc32c=crc32c(data), sha256=sha256(data))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """The commit record of one unit.

    Attributes:
        batch_id: number of the unit plus one.
        n_rows: number of rows of each hook point.
        n_sequences: number of samples that have rows.
        keys_sha256: sha256 of the rows' keys and the generated tokens, in order. Two attempts at a
            unit with the same digest are interchangeable.
        files: file of each hook point; empty if the unit has no rows.
        sidecars: second file of each hook point, for formats that have one.
        outputs: file of the samples' output lines; None if the run has none.
        statistics: statistics of each hook point's rows.
        written_at: time of the commit, ISO 8601, UTC; for people only.
        vocabulary: text of the token ids of the unit that its process had not met before; None if
            it is not recorded: by version 0.1.0, or because the texts were not given.
    """

    batch_id: int
    n_rows: int
    n_sequences: int
    keys_sha256: str
    files: dict[str, CommittedFile]
    sidecars: dict[str, CommittedFile]
    outputs: CommittedFile | None
    statistics: dict[str, RowStatistics]
    written_at: str
    vocabulary: Vocabulary | None = None

    def activation_files(self) -> list[CommittedFile]:
        """Return the files of all hook points, and their sidecars."""
        return [*self.files.values(), *self.sidecars.values()]

    def all_files(self) -> list[CommittedFile]:
        """Return every file of the unit."""
        return self.activation_files() + ([] if self.outputs is None else [self.outputs])

    def to_json(self) -> bytes:
        """Return the record as JSON, with a line for each field and for each hook point in it."""
        document = _fields(self)
        if self.vocabulary is None:
            del document["vocabulary"]
        else:
            document["vocabulary"] = to_document(self.vocabulary)
        for key in ("files", "sidecars", "statistics"):
            document[key] = {hook: _fields(entry) for hook, entry in document[key].items()}
        for entry in document["statistics"].values():
            if entry["largest"] is not None:
                entry["largest"] = columns_of(entry["largest"])
        if self.outputs is not None:
            document["outputs"] = _fields(self.outputs)
        fields = [f" {json.dumps(name)}: {_lines(value)}" for name, value in document.items()]
        return ("{\n" + ",\n".join(fields) + "\n}\n").encode()

    @classmethod
    def from_json(cls, data: bytes, name: str) -> "CommitRecord":
        """Return the record that a file holds.

        Args:
            data: content of the file.
            name: name of the file, for messages.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            raw: dict[str, Any] = read_json(data)
            for key in ("files", "sidecars"):
                raw[key] = {hook: CommittedFile(**entry) for hook, entry in raw[key].items()}
            raw["statistics"] = {h: _statistics(entry) for h, entry in raw["statistics"].items()}
            if raw["outputs"] is not None:
                raw["outputs"] = CommittedFile(**raw["outputs"])
            if raw.get("vocabulary") is not None:
                raw["vocabulary"] = from_document(raw["vocabulary"])
            record = cls(**raw)
            _check_values(record)
            return record
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise StoreError(f"{name} is no commit record: {error!r}") from None


def _fields(part: CommitRecord | CommittedFile | RowStatistics) -> dict[str, Any]:
    """Return the fields by name, not copied; `dataclasses.asdict` takes ten times as long."""
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


def _lines(value: Any) -> str:
    """Return a field as JSON; a dictionary of objects has a line for each object."""
    if (
        not value
        or not isinstance(value, dict)
        or not all(isinstance(entry, dict) for entry in value.values())
    ):
        return json.dumps(value)
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()]
    return "{\n" + ",\n".join(lines) + "\n }"


def _statistics(entry: dict[str, Any]) -> RowStatistics:
    """Return a record's statistics; version 0.1.0 wrote no fields after the histogram."""
    sums, largest = entry.get("bin_sums"), entry.get("largest")
    if sums is not None:
        entry["bin_sums"] = {name: BinSums(*values) for name, values in sums.items()}
    if largest is not None:
        entry["largest"] = rows_of_columns(largest)
    return RowStatistics(**entry)


def _check_values(record: CommitRecord) -> None:
    """Check the type and range of every value.

    Raises:
        ValueError: a value has another type, or is out of range.
    """
    counts = [record.batch_id, record.n_rows, record.n_sequences]
    texts = [record.keys_sha256, record.written_at]
    for file in record.all_files():
        check_name(file.file)
        counts.append(file.bytes)
        texts += [file.crc32c, file.sha256]
    for hook in {*record.files, *record.sidecars, *record.statistics}:
        check_hook_point(hook)
    for statistics in record.statistics.values():
        counts += [statistics.rows, statistics.nonfinite_rows, statistics.values]
        counts += statistics.norms.values()
        sums = (statistics.total, statistics.total_squares)
        if not all(type(part) in (int, float) and abs(part) < math.inf for part in sums):
            raise ValueError(f"sums {sums!r}")
        list(map(float, sums))
        if not all(map(is_bin, statistics.norms)):
            raise ValueError("the histogram of norms has an unknown bin")
        if statistics.bin_sums is not None:
            if statistics.bin_sums.keys() != statistics.norms.keys():
                raise ValueError("the sums are not those of the histogram's bins")
            for entry in statistics.bin_sums.values():
                counts.append(entry.first)
                if not (are_sums(entry[:2])):
                    raise ValueError(f"sums {entry!r} of a bin")
    if not all(map(is_count, counts)):
        raise ValueError("a count is not a whole number")
    if not all(type(text) is str for text in texts):
        raise ValueError("a checksum or time is no text")
    if any(file.bytes < record.n_rows for file in record.files.values()):
        raise ValueError(f"{record.n_rows} rows in a file of fewer bytes")


class CommitLog:
    """The commit records of a run, read from storage each time; a run may have very many.

    Args:
        storage: storage of the run.
    """

    def __init__(self, storage: Storage):
        self._storage = storage

    def batch_ids(self) -> set[int]:
        """Return the ids of the committed batches."""
        ids = (parse_record_name(name) for name in self._storage.names(COMMITS))
        return {batch_id for batch_id in ids if batch_id is not None}

    def read(self, batch_id: int) -> CommitRecord:
        """Return the record of a batch.

        Raises:
            FileNotFoundError: the batch is not committed.
            StoreError: the record is damaged.
        """
        return _record_of(batch_id, get_listed(self._storage, record_name(batch_id)))

    def read_each(
        self, batch_ids: Iterable[int]
    ) -> Iterator[tuple[int, CommitRecord | StoreError | OSError]]:
        """Yield each id with its record, or with the error that `read` raises for it."""
        wanted = list(batch_ids)
        files = read_files(self._storage, [record_name(batch_id) for batch_id in wanted])
        for batch_id, (_, found) in zip(wanted, files, strict=True):
            if isinstance(found, bytes):
                try:
                    yield batch_id, _record_of(batch_id, found)
                except StoreError as error:
                    yield batch_id, error
            else:
                yield batch_id, found

    def read_all(self, batch_ids: Iterable[int]) -> Iterator[CommitRecord]:
        """Yield the records of some batches, in the order of the ids.

        Raises:
            FileNotFoundError: a batch is not committed.
            StoreError: a record is damaged.
        """
        for _, found in self.read_each(batch_ids):
            if not isinstance(found, CommitRecord):
                raise found
            yield found

    def records(self) -> Iterator[CommitRecord]:
        """Yield all records that exist now, by batch id."""
        return self.read_all(sorted(self.batch_ids()))

    def put(self, record: CommitRecord) -> bool:
        """Commit a batch. Return False, and change nothing, if it is committed already."""
        try:
            self._storage.put_new(record_name(record.batch_id), record.to_json())
        except FileExistsError:
            return False
        return True


def _record_of(batch_id: int, data: bytes) -> CommitRecord:
    name = record_name(batch_id)
    record = CommitRecord.from_json(data, name)
    if record.batch_id != batch_id:
        raise StoreError(f"{name} holds the commit record of batch {record.batch_id}")
    return record
