import ml_dtypes
import numpy as np
import pytest

from extraction.errors import CorruptBatchError, ExistingRunError, StoreError
from extraction.formats import FORMATS
from extraction.maintenance.committed_files import read_batch
from extraction.maintenance.convert import convert
from extraction.maintenance.verify import verify
from extraction.run.identity import read_identity
from extraction.run.records import CommitLog
from extraction.run.rows import RowBlock
from extraction.run.statistics import RowStatistics
from extraction.run_layout import RUN_FILE
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import output_lines, write_metadata
from tests.extraction.known_rows import known_block, make_extractor
from tests.extraction.known_runs import FORMS
from tests.extraction.written_runs import (
    HOOKS,
    content_of,
    records_of,
    sample_rows,
    stop_after,
    write_run,
)
from tests.older_formats import RawWriter

GOOD, INCOMPLETE = 0, 4


def rows_of(storage, hook="layer_12"):
    """`[R, width]` float32 of all batches."""
    identity = read_identity(storage)
    return np.concatenate(
        [
            read_batch(storage, identity, record, hook).block().activations[hook]
            for record in records_of(storage)
        ]
    )


@pytest.mark.parametrize(("to", "to_dtype"), FORMS)
@pytest.mark.parametrize(("source_format", "dtype"), FORMS)
def test_every_format_becomes_every_other(tmp_path, source_format, dtype, to, to_dtype):
    source = write_run(tmp_path / "in", source_format, dtype)
    before = content_of(source)
    out = LocalStorage(tmp_path / "out")
    convert(source, out, to, to_dtype)
    assert verify(out, 3).exit_status == GOOD
    assert content_of(source) == before
    expected = rows_of(source)
    if to_dtype == "bfloat16":
        expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rows_of(out), expected)
    old, new = records_of(source), records_of(out)
    for one, other in zip(old, new, strict=True):
        assert (one.batch_id, one.keys_sha256) == (other.batch_id, other.keys_sha256)
        assert one.outputs == other.outputs
    assert list(output_lines(out, new)) == list(output_lines(source, old))
    identity = read_identity(out)
    assert (identity.file_format, identity.dtype) == (to, to_dtype)
    assert identity.fingerprint["converted_from"] == read_identity(source).run_id


@pytest.mark.parametrize(
    ("dtype", "to", "expected"),
    [
        ("float32", "safetensors", "float32"),  # never rounded unasked
        ("bfloat16", "safetensors", "bfloat16"),
        ("bfloat16", "pickle", "float32"),
        ("bfloat16", "npz", "float32"),
    ],
)
def test_the_dtype_is_kept_where_the_format_holds_it(tmp_path, dtype, to, expected):
    source = write_run(tmp_path / "in", "raw", dtype)
    out = LocalStorage(tmp_path / "out")
    convert(source, out, to)
    assert read_identity(out).dtype == expected
    np.testing.assert_array_equal(rows_of(out), rows_of(source))


@pytest.mark.parametrize("to", ["pickle", "npz"])
def test_a_format_that_cannot_hold_bfloat16_is_refused(tmp_path, to):
    source = write_run(tmp_path / "in", "raw")
    with pytest.raises(StoreError, match="cannot store bfloat16"):
        convert(source, LocalStorage(tmp_path / "out"), to, "bfloat16")
    assert not (tmp_path / "out").exists()


def test_numbers_of_all_bits_come_through(tmp_path):
    block, lines = sample_rows(0)
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, (len(block), 4), np.uint32)
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    columns["activations"] = dict.fromkeys(HOOKS, bits.view(np.float32))
    source = write_run(tmp_path / "in", units=0, planned=1)
    Committer(source, HOOKS).commit(1, RowBlock(**columns), lines)
    write_metadata(source)
    for to, dtype in FORMS:
        out = LocalStorage(tmp_path / f"{to}-{dtype}")
        convert(source, out, to, dtype)
        assert verify(out, 3).exit_status == GOOD
        if dtype == "float32":
            assert rows_of(out).tobytes() == bits.tobytes()


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
    class Careless(RawWriter):
        def serialise(self, hook_point, block, dtype="float32"):
            values = block.activations[hook_point].copy()
            values[-1, -1] = np.nextafter(values[-1, -1], np.float32(np.inf))
            columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
            block = RowBlock(**{**columns, "activations": {hook_point: values}})
            return super().serialise(hook_point, block, dtype)

    monkeypatch.setitem(FORMATS, "raw", Careless())
    out = LocalStorage(tmp_path / "out")
    with pytest.raises(StoreError, match="activations came back otherwise"):
        convert(write_run(tmp_path / "in"), out, "raw")
    assert CommitLog(out).batch_ids() == set()


def test_keys_are_read_back_too(tmp_path, monkeypatch):
    class Careless(RawWriter):
        def serialise(self, hook_point, block, dtype="float32"):
            columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
            columns["token_id"] = block.token_id + 1
            return super().serialise(hook_point, RowBlock(**columns), dtype)

    monkeypatch.setitem(FORMATS, "raw", Careless())
    with pytest.raises(StoreError, match="token_id came back otherwise"):
        convert(write_run(tmp_path / "in"), LocalStorage(tmp_path / "out"), "raw")


def test_damage_is_not_spread(tmp_path):
    source = write_run(tmp_path / "in")
    name = "layer_12_batch_000002.pkl"
    source.replace(name, source.get(name)[:-1])
    out = LocalStorage(tmp_path / "out")
    with pytest.raises(CorruptBatchError, match=name):
        convert(source, out, "raw")
    assert 2 not in CommitLog(out).batch_ids()


def test_a_conversion_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    source, out = write_run(tmp_path / "in"), LocalStorage(tmp_path / "out")
    stop_after(monkeypatch, out, 8)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, "safetensors")
    before = content_of(out)
    assert len(before) > 2
    again = LocalStorage(tmp_path / "out")
    convert(source, again, "safetensors")
    after = content_of(again)
    assert verify(again, 3).exit_status == GOOD
    assert {name: after[name] for name in before} == before
    monkeypatch.setattr(again, "put_new", refuse_all_but_identity)
    convert(source, again, "safetensors")  # once more changes nothing
    assert content_of(again) == after
    with pytest.raises(ExistingRunError, match="file_format"):
        convert(source, again, "npz")


def refuse_all_but_identity(name, data):
    assert name == RUN_FILE
    raise FileExistsError(name)


def test_statistics_are_those_of_what_is_stored(tmp_path):
    source = write_run(tmp_path / "in")
    out = LocalStorage(tmp_path / "out")
    convert(source, out, "raw", "bfloat16")
    parts = [record.statistics["layer_12"] for record in records_of(out)]
    found = RowStatistics.of(rows_of(out))
    assert RowStatistics.merge(parts).total_squares == pytest.approx(found.total_squares, rel=1e-12)
    before = RowStatistics.of(rows_of(source))
    assert found.total_squares != pytest.approx(before.total_squares, rel=1e-12)


def test_an_unfinished_run_is_converted_as_far_as_it_goes(tmp_path):
    source = write_run(tmp_path / "in", units=2, planned=4)
    out = LocalStorage(tmp_path / "out")
    convert(source, out, "npz")
    assert verify(out, 3).exit_status == INCOMPLETE
    for unit in (2, 3):
        Committer(source, HOOKS).commit(unit + 1, *sample_rows(unit))
    convert(source, out, "npz")
    assert verify(out, 3).exit_status == GOOD


def test_an_extractors_run_is_converted(tmp_path):
    with make_extractor(tmp_path / "in", save_every=2) as extractor:
        extractor.add(known_block(0, 5))
    out = LocalStorage(tmp_path / "out")
    convert(LocalStorage(tmp_path / "in"), out, "safetensors")
    assert verify(out, 3).exit_status == GOOD
    np.testing.assert_array_equal(rows_of(out, "layer_6"), known_block(0, 5).activations["layer_6"])


def test_there_must_be_a_run_and_a_format(tmp_path):
    out = LocalStorage(tmp_path / "out")
    with pytest.raises(StoreError, match="no run"):
        convert(LocalStorage(tmp_path), out, "raw")
    with pytest.raises(StoreError, match="no format 'csv'"):
        convert(write_run(tmp_path / "in"), out, "csv")


def test_a_bucket_is_converted(tmp_path, fake_gcs):
    source = write_run(GcsStorage("gs://bucket/in", fake_gcs.client()))
    out = GcsStorage("gs://bucket/out", fake_gcs.client())
    convert(source, out, "raw", "bfloat16")
    assert verify(out, 3).exit_status == GOOD
