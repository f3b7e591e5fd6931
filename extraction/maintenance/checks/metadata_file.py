"""Checks of `metadata.json`, which is derived, against the commit records.

It may lack the last batches of a run that is still running or was interrupted; everything in it
must be right for the batches that it lists.
"""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from extraction.documents import read_json
from extraction.maintenance.checks.report import Report
from extraction.run.identity import RunIdentity
from extraction.run.records import CommitRecord
from extraction.run.totals import BatchSummary, RunTotals
from extraction.run_layout import METADATA_FILE
from extraction.setting_names import setting
from extraction.storage import Storage
from extraction.writing.finalise import derived_document

MOVING = {"complete", "planned_batches", "run"}
"""Keys that may differ in the file of an unfinished run."""


def check_metadata(
    data: bytes | None,
    storage: Storage,
    identity: RunIdentity,
    totals: RunTotals,
    read_record: Callable[[int], CommitRecord],
    others: Container[str],
    report: Report,
) -> None:
    """Compare `metadata.json` with what would be written now.

    Args:
        data: content of the file, read before the records; None: there is no file.
        storage: storage of the run.
        identity: identity of the run.
        totals: totals of all records.
        read_record: returns the whole record of a batch.
        others: files in the run's folder that no record names.
        report: receives the problems.
    """
    if data is None:
        if report.unfinished:
            report.notes.append(f"{METADATA_FILE} is not written yet")
        else:
            report.add(METADATA_FILE, "is missing; `repair` writes it")
        return
    if data == derived_document(storage, identity, totals):
        return
    try:
        found = read_json(data)
    except ValueError as error:
        report.add(METADATA_FILE, f"is not JSON ({error}); `repair` writes it anew")
        return
    if type(found) is not dict or type(found.get("batches")) is not list:
        report.add(METADATA_FILE, "does not describe a run; `repair` writes it anew")
        return
    before = len(report.problems)
    batches = totals.batches()
    listed = _check_entries(found.pop("batches"), batches, others, report)
    if len(report.problems) > before:
        return
    known = [batch for batch in batches if listed.issuperset(batch.files.values())]
    later = len(batches) - len(known)
    if later:
        totals = RunTotals(read_record(batch.batch_id) for batch in known)
    expected = json.loads(derived_document(storage, identity, totals, list_files=False))
    expected["total_samples"] = sum(batch.n_rows for batch in known if batch.files)
    del expected["batches"]
    differing = {key for key in {*found, *expected} if found.get(key) != expected.get(key)}
    if differing - (MOVING if found.get("complete") is False else set()):
        keys = ", ".join(sorted(differing))
        report.add(METADATA_FILE, f"differs from the records in {keys}; `repair` writes it anew")
    elif later or differing:
        report.unfinished.append(
            f"{METADATA_FILE} is older than the run ({later} batches came later); `repair`, or the"
            f" same run with {setting('resume', True)}, brings it up to date"
        )


def _check_entries(
    entries: Sequence[Any],
    batches: Sequence[BatchSummary],
    others: Container[str],
    report: Report,
) -> set[str]:
    """Return the files that `metadata.json` lists, checked against the records that name them."""
    by_file = {
        file: (batch.batch_id, hook, batch.n_rows)
        for batch in batches
        for hook, file in batch.files.items()
    }
    listed: set[str] = set()
    for entry in entries:
        if not isinstance(entry, Mapping) or type(entry.get("file")) is not str:
            report.add(METADATA_FILE, f"lists {str(entry)[:100]}, which is not a batch")
            continue
        name = entry["file"]
        record = by_file.get(name)
        told = (entry.get("batch_id"), entry.get("layer"), entry.get("n_samples"))
        problem = None
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            problem = f"lists {name!r}, which is not a valid name of a file here"
        elif name in listed:
            problem = f"lists {name} twice"
        elif record is None:
            problem = f"lists {name}, which {'no record names' if name in others else 'is missing'}"
        elif told != record:
            problem = f"says {told} of {name}, but its record says {record}"
        listed.add(name)
        if problem is not None:
            batch_id = told[0] if type(told[0]) is int else None
            report.add(METADATA_FILE, problem, batch_id)
    return listed
