import json
import random

import pytest

from extraction.run.identity import read_identity
from extraction.run.records import CommitLog
from extraction.run.statistics import RowStatistics
from extraction.run.totals import RunTotals
from extraction.writing.finalise import derived_document
from tests.extraction.written_runs import records_of, write_run


@pytest.mark.parametrize("units", [0, 1, 5])
def test_the_document_is_the_same_in_any_order_of_the_records(tmp_path, units):
    storage = write_run(tmp_path, units=units)
    identity, records = read_identity(storage), records_of(storage)
    assert identity is not None
    expected = storage.get("metadata.json")
    random.Random(1).shuffle(records)
    assert derived_document(storage, identity, RunTotals(records)) == expected
    hollow = json.loads(derived_document(storage, identity, RunTotals(records), list_files=False))
    whole = json.loads(expected)
    assert (hollow.pop("batches"), hollow.pop("total_samples")) == ([], 0)
    assert hollow == {key: whole[key] for key in hollow}


def test_they_add_up(tmp_path):
    records = records_of(write_run(tmp_path, units=5))
    totals = RunTotals(records)
    assert len(totals) == 5
    assert totals.n_rows == sum(record.n_rows for record in records) > 0
    assert totals.n_sequences == sum(record.n_sequences for record in records) > 0
    files = [file for record in records for file in record.all_files()]
    assert (totals.n_files, totals.n_bytes) == (len(files), sum(file.bytes for file in files))
    assert totals.last_written_at == max(record.written_at for record in records)
    for hook in records[0].statistics:
        parts = [record.statistics[hook] for record in records if record.statistics]
        assert totals.statistics(hook) == RowStatistics.merge(parts)
    assert [batch.batch_id for batch in totals.batches()] == [r.batch_id for r in records]
    assert totals.batches()[0].files == {h: f.file for h, f in records[0].files.items()}
    assert totals.statistics("layer_99").rows == 0


def test_a_batch_counts_once(tmp_path):
    storage = write_run(tmp_path, units=3)
    totals = RunTotals(records_of(storage)[:2])
    before = totals.n_rows
    totals.add(records_of(storage)[0])
    assert totals.n_rows == before
    assert totals.read_new(CommitLog(storage)) == {1, 2, 3}
    assert totals.n_rows == RunTotals(records_of(storage)).n_rows > before
    assert 3 in totals
    assert 4 not in totals
