import numpy as np
import pytest

from extraction.errors import CorruptBatchError, StoreError
from extraction.maintenance.convert import convert
from extraction.maintenance.inspect_run import inspect_run
from extraction.run.identity import read_identity
from extraction.run.rows import RowBlock
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata
from tests.extraction.known_rows import known_block, make_extractor
from tests.extraction.known_runs import FORMS
from tests.extraction.written_runs import HOOKS, sample_rows, write_run
from tests.golden.test_golden_runs import RUNS


def told(storage, **kwargs) -> str:
    return "\n".join(inspect_run(storage, **kwargs))


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_a_run_is_described(tmp_path, file_format, dtype):
    storage = write_run(tmp_path, file_format, dtype)
    text = told(storage)
    identity = read_identity(storage)
    assert f"run          {identity.run_id}, begun {identity.created_at}" in text
    assert "model        Qwen/Qwen2.5-0.5B" in text
    assert "state        complete, 3 batches" in text
    assert "hook points  layer_6, layer_12" in text
    assert "rows         18 for each of 2 hook points, of 9 sequences" in text
    size = sum(
        path.stat().st_size for path in [*tmp_path.glob("*_batch_*"), *tmp_path.glob("_run/out*/*")]
    )
    files = 15 if file_format == "raw" else 9
    assert f"{file_format}, {dtype}, {files} files, {size / 1000:.3g} kB, in {tmp_path}" in text


def test_statistics_are_those_of_the_rows(tmp_path):
    rows = 200
    random = np.random.default_rng(0)
    values = random.standard_normal((rows, 4)).astype(np.float32)
    values[:6] *= 1000  # sinks
    values[6, 0] = np.inf
    block = known_block(0, rows, (6, 12))
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    columns["activations"] = {hook: values for hook in HOOKS}
    storage = write_run(tmp_path, units=0, planned=1)
    Committer(storage, HOOKS).commit(1, RowBlock(**columns))
    write_metadata(storage)
    lines = [line.split() for line in told(storage).splitlines() if line.startswith("layer_12")]
    name, shape, width, mean, mean_square, median, mean_norm, nonfinite = lines[0]
    assert (name, shape, width) == ("layer_12", "[200,", "4]")
    finite = np.delete(values.astype(np.float64), 6, axis=0)
    norms = np.linalg.norm(finite, axis=1)
    assert float(mean) == pytest.approx(finite.mean(), rel=1e-3)
    assert float(mean_square) == pytest.approx((finite**2).mean(), rel=1e-3)
    assert float(median) == pytest.approx(np.median(norms), rel=0.05)
    assert float(mean_norm) == pytest.approx(norms.mean(), rel=1e-3)
    assert nonfinite == "1"
    name, above, share, first, mean, mean_norm, positions, token_ids = lines[1]
    assert (above, share, first) == ("6", f"{6 / 199:.2%}", "0")
    assert float(mean) == pytest.approx(finite[6:].mean(), rel=1e-3)
    assert float(mean_norm) == pytest.approx(norms[6:].mean(), rel=1e-3)
    assert (positions, token_ids) == ("10,11,12,13,...", "20,21,22,23,...")
    lines = told(storage, max_norm_multiple=1e9).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("layer_12")][1] == "0"
    with pytest.raises(StoreError, match="max_norm_multiple"):
        told(storage, max_norm_multiple=0)


def test_runs_of_the_version_before_say_what_they_lack(tmp_path):
    storage = LocalStorage(RUNS / "safetensors" / "activations", writable=False)
    text = told(storage)
    assert "recorded no keys and no sums of norms" in text
    convert(storage, LocalStorage(tmp_path), "safetensors")
    assert "recorded no keys" not in told(LocalStorage(tmp_path))


def test_rows_are_shown_with_their_tokens(tmp_path):
    storage = write_run(tmp_path)
    lines = told(storage, rows=2).splitlines()
    start = lines.index("first rows of layer_6_batch_000001.pkl")
    value = sample_rows(0)[0].activations["layer_6"][0, 0]
    assert lines[start + 1].startswith(
        f'  task_id "tâsk_0", sample_idx 0, step 0, position 2, token_id 99: [{value:.4g}, '
    )
    assert lines[start + 2].startswith("    the prompt ends ...")
    assert lines[start + 2].endswith('long end"')
    assert "sample_idx 1, step 0, position 2" in lines[start + 3]
    assert len(lines) == start + 5
    assert "first rows" not in told(storage, rows=0)


@pytest.mark.parametrize("rows", [0, 1])
def test_extractors_runs_are_described(tmp_path, rows):
    with make_extractor(tmp_path) as extractor:
        extractor.add(known_block(0, rows))
    text = told(LocalStorage(tmp_path))
    assert f"complete, {rows} batches" in text
    assert ("first rows" in text) == (rows > 0)


def test_missing_batches_are_told(tmp_path):
    storage = write_run(tmp_path / "1", units=2, planned=5)
    assert "incomplete, 2 of 5 batches; missing 3-5" in told(storage)
    extractor = make_extractor(tmp_path / "2", save_every=1)
    extractor.add(known_block(0, 1))
    assert "1 batches so far: still being written" in told(LocalStorage(tmp_path / "2"))


def test_damage_and_strangers_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no run"):
        told(LocalStorage(tmp_path / "none", writable=False))
    storage = write_run(tmp_path)
    storage.replace("layer_6_batch_000001.pkl", b"torn")
    with pytest.raises(CorruptBatchError, match="layer_6_batch_000001"):
        told(storage)


def test_a_bucket_is_described(fake_gcs):
    storage = write_run(GcsStorage("gs://bucket/run", fake_gcs.client()))
    assert "in gs://bucket/run" in told(storage)
