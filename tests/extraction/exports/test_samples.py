import numpy as np
import pytest

from extraction.errors import StoreError
from extraction.exports import samples as module
from extraction.exports.samples import samples_of
from extraction.reading.dataset import ActivationDataset
from tests.extraction.exports.ragged_runs import BATCHES, EVERY, WITH_ROWS, write_ragged_run


@pytest.mark.parametrize("step", [1, 4, 100])
def test_every_row_is_known_by_its_sample_and_place(tmp_path, monkeypatch, step):
    monkeypatch.setattr(module, "STEP", step)
    write_ragged_run(tmp_path)
    samples = samples_of(ActivationDataset(tmp_path, 6))
    assert list(samples.numbers) == [sample.key for sample in WITH_ROWS]
    assert samples.task_ids == [sample.task_id for sample in WITH_ROWS]
    assert samples.sample_idx.tolist() == [sample.sample_idx for sample in WITH_ROWS]
    assert samples.rows.tolist() == [len(sample.positions) for sample in WITH_ROWS]
    rows = [row for batch in BATCHES for row in batch]
    assert samples.sample.tolist() == [WITH_ROWS.index(sample) for sample, _ in rows]
    assert samples.slot.tolist() == [sample.positions.index(place) for sample, place in rows]
    assert samples.position.tolist() == [place for _, place in rows]
    assert samples.token_id.tolist() == [sample.tokens[place] for sample, place in rows]
    ordered = sorted(rows, key=lambda row: (WITH_ROWS.index(row[0]), row[1]))
    assert samples.places().tolist() == [ordered.index(row) for row in rows]


def test_a_row_twice_is_refused(tmp_path):
    write_ragged_run(tmp_path, batches=(((EVERY, 0), (EVERY, 1)), ((EVERY, 1),)), lines=None)
    with pytest.raises(
        StoreError, match=r"the same position in tâsk \(sample_idx 0\); .* --level 3"
    ):
        samples_of(ActivationDataset(tmp_path, 6))


def test_many_samples_are_named_by_the_first(tmp_path):
    write_ragged_run(tmp_path)
    samples = samples_of(ActivationDataset(tmp_path, 6))
    assert samples.named(np.array([False, True, True])) == (
        "long (sample_idx 3), tâsk (sample_idx 1)"
    )
    numbers = {(f"t{number}", 0): number for number in range(8)}
    many = module.Samples(**vars(samples) | {"numbers": numbers})
    assert many.named(np.ones(8, bool)).endswith("t4 (sample_idx 0) and 3 more")
