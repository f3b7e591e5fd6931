"""Checks of a commit record against itself and the run's identity."""

import re
from collections.abc import Iterator

from extraction.formats import FORMATS
from extraction.run.identity import RunIdentity
from extraction.run.largest_rows import MOST_KEPT
from extraction.run.records import CommitRecord, CommittedFile
from extraction.run.statistics import RowStatistics
from extraction.run_layout import OUTPUTS_FOLDER

_CRC32C = re.compile("[0-9a-f]{8}")
_SHA256 = re.compile("[0-9a-f]{64}")


def record_problems(record: CommitRecord, identity: RunIdentity) -> Iterator[str]:
    """Yield what a readable record contradicts: its types, itself or the run's identity.

    Args:
        record: any record that `CommitRecord.from_json` returns.
        identity: identity of the run.
    """
    if not (type(record.keys_sha256) is str and _SHA256.fullmatch(record.keys_sha256)):
        yield f"keys_sha256 is {record.keys_sha256!r}"
    files = record.all_files()
    for file in files:
        if not _is_file(file):
            yield f"the entry of {file.file!r} has no crc32c and sha256"
    names = [file.file for file in files]
    if len(set(names)) < len(names):
        yield f"it names a file twice: {', '.join(names)}"
    if record.n_sequences > record.n_rows:
        yield f"{record.n_sequences} sequences with {record.n_rows} rows"
    expected = set(identity.hook_points)
    if set(record.files) != expected and (record.n_rows or record.files):
        yield f"it has files of {sorted(record.files)}, not of {sorted(expected)}"
    two_files = FORMATS[identity.file_format].sidecar_extension is not None
    if set(record.sidecars) != (set(record.files) if two_files else set()):
        yield f"it has second files of {sorted(record.sidecars)} in a {identity.file_format} run"
    if set(record.statistics) != set(record.files):
        yield f"it has statistics of {sorted(record.statistics)}"
    for hook, statistics in record.statistics.items():
        if not _are_statistics(statistics, record.n_rows):
            yield f"the statistics of {hook} are not those of {record.n_rows} rows"
    for file in record.activation_files():
        if "/" in file.file:
            yield f"{file.file!r} is in another folder"
    if record.outputs is not None and record.outputs.file.rpartition("/")[0] != OUTPUTS_FOLDER[:-1]:
        yield f"output lines in {record.outputs.file!r}, not in {OUTPUTS_FOLDER}"


def _is_file(file: CommittedFile) -> bool:
    return (
        type(file.crc32c) is str
        and type(file.sha256) is str
        and _CRC32C.fullmatch(file.crc32c) is not None
        and _SHA256.fullmatch(file.sha256) is not None
    )


def _are_statistics(statistics: RowStatistics, rows: int) -> bool:
    norms = statistics.norms
    if type(norms) is not dict or not {*map(type, norms.values())} <= {int}:
        return False
    counts = (statistics.rows, statistics.nonfinite_rows, statistics.values, *norms.values())
    if {*map(type, counts)} != {int} or min(counts) < 0:
        return False
    if not {type(statistics.total), type(statistics.total_squares)} <= {int, float}:
        return False
    finite = sum(norms.values())
    if statistics.largest is not None and len(statistics.largest) != min(MOST_KEPT, finite):
        return False
    for name, sums in (statistics.bin_sums or {}).items():
        if sums.first > norms[name]:
            return False
    return statistics.rows == rows == finite + statistics.nonfinite_rows
