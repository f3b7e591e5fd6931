"""`sae.train` on runs and on iterators."""

import numpy as np
import pytest

from extraction import ActivationDataset
from extraction.errors import StoreError
from inference.errors import InputError
from sae import SparseAutoencoder, train
from tests.sae.small_run import HOOK, TARGET, features, write_run

SETTINGS = {"d_sae": "48", "k": 4, "learning_rate": 3e-3}


def fvu(sae: SparseAutoencoder, rows: np.ndarray) -> float:
    return float(((sae(rows) - rows) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum())


def test_a_run_and_the_same_batches_give_the_same_autoencoder(tmp_path):
    run = write_run(tmp_path / "run")
    common = {**SETTINGS, "normalize": "none"}
    one = train(
        run, tmp_path / "saes", hook_points=[HOOK], batch_size=50, train_rows=3000, **common
    )
    dataset = ActivationDataset(run, HOOK)
    stream = dataset.batches(50, shuffle_seed=0, pool_rows=1 << 17, epochs=None)
    other = train(stream, train_rows=3000, **common)
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name])


def test_rows_of_any_norm_are_learnt(tmp_path):
    rows = features(5000, 0, 16) * 1e3
    batches = (rows[np.random.default_rng(n).integers(0, 5000, 64)] for n in range(10_000))
    sae = train(batches, train_rows=64 * 600, **SETTINGS)
    assert fvu(sae, rows) < 0.35
    assert sae.metadata["rows_trained_on"] == 64 * 600


def test_several_hook_points_come_by_name(tmp_path):
    run = write_run(tmp_path / "run")
    found = train(run, tmp_path / "saes", hook_points=[HOOK, TARGET], batch_size=50, **SETTINGS)
    assert {name: sae.d_in for name, sae in found.items()} == {HOOK: 16, TARGET: 12}


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    good = np.ones((4, 3), np.float32)
    for batches, told in (
        ([], "no batch"),
        ([good, good[:2]], "batch 2 is"),
        ([good[0]], "must be"),
        ([good * np.nan], "not finite"),
        ([good], "ended after 4 of 8 rows"),
    ):
        with pytest.raises(StoreError, match=told):
            train(batches, train_rows=8, d_sae="6", k=2)
    with pytest.raises(InputError, match="needs train_rows"):
        train([good], d_sae="6", k=2)
    with pytest.raises(InputError, match="needs output_dir"):
        train(tmp_path)
    with pytest.raises(InputError, match="k must be at least 1"):
        train([good], train_rows=8, k=0)
