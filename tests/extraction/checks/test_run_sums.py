import json

import pytest

from extraction.checks.run_sums import RunSums
from extraction.finalise import derived_document
from extraction.run_identity import read_identity
from tests.extraction.written_runs import records_of, write_run


@pytest.mark.parametrize("units", [0, 1, 5])
def test_the_document_is_the_same_byte_for_byte(tmp_path, units):
    storage = write_run(tmp_path, units=units)
    identity, records, sums = read_identity(storage), records_of(storage), RunSums()
    for record in records:
        sums.add(record)
    expected = storage.get("metadata.json")
    assert derived_document(storage, identity, records) == expected
    assert derived_document(storage, identity, sums.for_document()) == expected
    hollow = json.loads(derived_document(storage, identity, sums.for_document(list_files=False)))
    whole = json.loads(expected)
    assert (hollow.pop("batches"), hollow.pop("total_samples")) == ([], 0)
    assert hollow.items() <= whole.items() or hollow == {key: whole[key] for key in hollow}
