import json
import pickle

import numpy as np
import pytest

from extraction.checksums import sha256
from extraction.errors import ConflictError, CorruptBatchError, ExistingRunError, StoreError
from extraction.maintenance.convert import convert
from extraction.maintenance.merge import merge
from extraction.maintenance.verify import verify
from extraction.run.identity import read_identity
from extraction.run.records import CommitLog
from extraction.run.rows import RowBlock
from extraction.run_layout import RUN_FILE, SELF_CHECKS
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

GOOD, INCOMPLETE = 0, 4
SOME = {"weights_sha256": "ab", "samples_sha256": "x", "batch_size": 8}


def parts(folder, file_format="pickle", dtype="float32", **settings):
    """Three runs of 3, 1 and 2 units, with samples of their own."""
    return [
        write_run(folder / f"part{n}", file_format, dtype, units=units, first=1000 * n, **settings)
        for n, units in enumerate((3, 1, 2))
    ]


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_all_batches_are_there_byte_for_byte(tmp_path, file_format, dtype):
    sources = parts(tmp_path, file_format, dtype)
    before = [content_of(source) for source in sources]
    out = LocalStorage(tmp_path / "out")
    totals = merge(out, sources)
    assert verify(out, 3).exit_status == GOOD
    assert [batch.batch_id for batch in totals.batches()] == [1, 2, 3, 4, 5, 6]
    old = [(source, record) for source in sources for record in records_of(source)]
    for (source, there), here in zip(old, records_of(out), strict=True):
        for file, copied in zip(there.all_files(), here.all_files(), strict=True):
            assert source.get(file.file) == out.get(copied.file)
            assert sha256(out.get(copied.file)) == copied.sha256
        assert here.statistics == there.statistics
    assert [content_of(source) for source in sources] == before
    assert len(list(output_lines(out, records_of(out)))) == 24
    metadata = json.loads(out.get("metadata.json"))
    assert (metadata["complete"], metadata["total_samples"]) == (True, 36)
    assert metadata["total_sequences"] == 18


def test_files_are_named_by_their_new_numbers(tmp_path):
    out = LocalStorage(tmp_path / "out")
    merge(out, parts(tmp_path))
    names = [f"{hook}_batch_{n:06d}.pkl" for hook in HOOKS for n in range(1, 7)]
    assert out.names() == sorted([*names, "metadata.json"])
    data = pickle.loads(out.get("layer_12_batch_000004.pkl"))
    assert {row["sample_idx"] for row in data["activations"]} == {1000, 1001, 1002}


def test_the_merged_run_has_its_own_identity(tmp_path):
    sources = parts(tmp_path, fingerprint=SOME)
    out = LocalStorage(tmp_path / "out")
    merge(out, sources)
    ids = [read_identity(source).run_id for source in sources]
    identity = read_identity(out)
    assert identity.run_id not in ids
    assert identity.fingerprint == SOME | {"merged_from": [[ids[0], 3], [ids[1], 1], [ids[2], 2]]}
    assert [source["address"] for source in identity.run["sources"]] == [
        source.address for source in sources
    ]


def test_what_differs_between_parts_of_the_work_is_no_obstacle(tmp_path):
    one = write_run(tmp_path / "1", fingerprint=SOME)
    two = write_run(
        tmp_path / "2", first=100, fingerprint=SOME | {"samples_sha256": "y", "batch_size": 4}
    )
    out = LocalStorage(tmp_path / "out")
    merge(out, [one, two])
    fingerprint = dict(read_identity(out).fingerprint)
    fingerprint.pop("merged_from")
    assert fingerprint == {"weights_sha256": "ab"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_setting_that_one_run_does_not_know_is_as_if_it_was_off(tmp_path, order):
    known = SOME | {"pack_length": 0, "repetition_penalty": 1.0}
    one = write_run(tmp_path / "1", fingerprint=SOME)
    two = write_run(tmp_path / "2", first=100, fingerprint=known)
    out = LocalStorage(tmp_path / "out")
    merge(out, [(one, two)[place] for place in order])
    assert verify(out, 3).verdict == "good"
    packed = write_run(tmp_path / "3", first=200, fingerprint=known | {"pack_length": 512})
    with pytest.raises(StoreError, match="pack_length: 0 and 512"):
        merge(LocalStorage(tmp_path / "none"), [one, packed])


def test_a_run_that_is_marked_as_wrong_stays_so(tmp_path):
    marked = write_run(tmp_path / "1", fingerprint=SOME)
    good = write_run(tmp_path / "2", first=100, fingerprint=SOME)
    for storage, found in ((marked, {"failed": "rows differ"}), (good, {})):
        check = json.dumps({"samples": 1, "largest_error": 0.0} | found).encode()
        storage.replace(f"{SELF_CHECKS}00000.json", check)
        write_metadata(storage)
    assert verify(good).verdict == "good"
    merged, converted = LocalStorage(tmp_path / "merged"), LocalStorage(tmp_path / "converted")
    merge(merged, [good, marked])
    convert(marked, converted, "npz")
    for storage in marked, merged, converted:
        report = verify(storage)
        assert report.verdict == "damaged"
        assert "rows differ" in report.problems[0].problem


DIFFERING = {
    "model_name": {"model_name": "other"},
    "file_format": {"file_format": "npz"},
    "dtype": {"file_format": "raw", "dtype": "bfloat16"},
    "weights_sha256": {"fingerprint": {"weights_sha256": "cd"}},
}


@pytest.mark.parametrize("setting", DIFFERING)
def test_runs_of_other_settings_are_refused_by_name(tmp_path, setting):
    format_ = {"file_format": "raw"} if setting == "dtype" else {}
    one = write_run(tmp_path / "1", **({"fingerprint": {"weights_sha256": "ab"}} | format_))
    two = write_run(
        tmp_path / "2",
        first=100,
        **({"fingerprint": {"weights_sha256": "ab"}} | DIFFERING[setting]),
    )
    out = LocalStorage(tmp_path / "out")
    with pytest.raises(StoreError, match=f"\n  {setting}: .* and "):
        merge(out, [one, two])
    assert not (tmp_path / "out").exists()


def test_duplicate_keys_are_refused_before_anything_is_written(tmp_path):
    one = write_run(tmp_path / "1")
    two = write_run(tmp_path / "2", units=1, first=100)
    Committer(two, HOOKS).commit(2, *sample_rows(1))  # beyond its plan of 1
    with pytest.raises(StoreError, match="beyond its plan"):
        merge(LocalStorage(tmp_path / "out"), [one, two])
    three = write_run(tmp_path / "3", units=1, planned=2, first=100)
    Committer(three, HOOKS).commit(2, *sample_rows(1))
    with pytest.raises(
        StoreError, match=r"the key .*sk_1\", 4, 2\], and 5 more occurs in"
    ) as error:
        merge(LocalStorage(tmp_path / "out"), [one, three])
    assert f"{one.address} (batch 2) and in {three.address} (batch 2)" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_duplicate_samples_without_rows_are_refused(tmp_path):
    sources = []
    for name in ("1", "2"):
        storage = write_run(tmp_path / name, units=0, planned=1)
        Committer(storage, HOOKS).commit(1, None, [sample_rows(0)[1][3]])
        sources.append(storage)
    with pytest.raises(StoreError, match="an output line"):
        merge(LocalStorage(tmp_path / "out"), sources)


def test_the_same_run_twice_is_refused(tmp_path):
    one = write_run(tmp_path / "1")
    with pytest.raises(StoreError, match="same run"):
        merge(LocalStorage(tmp_path / "out"), [one, LocalStorage(tmp_path / "1")])


def test_there_must_be_a_run(tmp_path):
    with pytest.raises(StoreError, match="no run"):
        merge(LocalStorage(tmp_path / "out"), [LocalStorage(tmp_path / "1")])


def test_damage_is_not_spread(tmp_path):
    one, two = write_run(tmp_path / "1"), write_run(tmp_path / "2", first=100)
    name = "layer_12_batch_000002.pkl"
    data = bytearray(two.get(name))
    data[300] ^= 1
    two.replace(name, bytes(data))
    out = LocalStorage(tmp_path / "out")
    with pytest.raises(CorruptBatchError, match=f"2/{name}: crc32c"):
        merge(out, [one, two])
    assert 5 not in CommitLog(out).batch_ids()


def test_a_merge_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    sources = parts(tmp_path)
    out = LocalStorage(tmp_path / "out")
    stop_after(monkeypatch, out, 11)
    with pytest.raises(KeyboardInterrupt):
        merge(out, sources)
    before = content_of(out)
    assert 0 < len(CommitLog(out).batch_ids()) < 6
    again = LocalStorage(tmp_path / "out")
    merge(again, sources)
    after = content_of(again)
    assert verify(again, 3).exit_status == GOOD
    assert {name: after[name] for name in before} == before
    monkeypatch.setattr(again, "put_new", refuse_all_but_identity)
    merge(again, sources)  # once more changes nothing
    assert content_of(again) == after


def refuse_all_but_identity(name, data):
    assert name == RUN_FILE
    raise FileExistsError(name)


def test_another_file_under_a_name_is_left(tmp_path):
    out = LocalStorage(tmp_path / "out")
    sources = parts(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/layer_6_batch_000002.pkl").write_bytes(b"theirs")
    with pytest.raises(ExistingRunError):
        merge(out, sources)
    (tmp_path / "out/layer_6_batch_000002.pkl").unlink()
    merge(out, sources)
    out.remove("_run/commits/000002.json")
    out.replace("layer_6_batch_000002.pkl", b"theirs")
    with pytest.raises(ConflictError, match="layer_6_batch_000002"):
        merge(out, sources)
    assert out.get("layer_6_batch_000002.pkl") == b"theirs"


def test_a_folder_with_another_run_is_refused(tmp_path):
    out = write_run(tmp_path / "out")
    before = content_of(out)
    with pytest.raises(ExistingRunError, match="other settings"):
        merge(out, parts(tmp_path))
    assert content_of(out) == before


def test_what_a_source_lacks_is_added_when_it_is_there(tmp_path):
    one = write_run(tmp_path / "1", units=2, planned=3)
    two = write_run(tmp_path / "2", first=100)
    out = LocalStorage(tmp_path / "out")
    merge(out, [one, two])
    report = verify(out, 3)
    assert (report.exit_status, report.unfinished) == (
        INCOMPLETE,
        ["1 of 6 batches are missing: 3"],
    )
    Committer(one, HOOKS).commit(3, *sample_rows(2))
    write_metadata(one)
    merge(out, [one, two])
    assert verify(out, 3).exit_status == GOOD


def test_extractors_runs_are_merged(tmp_path):
    for n in (0, 1):
        with make_extractor(tmp_path / str(n), save_every=2) as extractor:
            extractor.add(known_block(10 * n, 5))
    out = LocalStorage(tmp_path / "out")
    merge(out, [LocalStorage(tmp_path / "0"), LocalStorage(tmp_path / "1")])
    report = verify(out, 3)
    assert (report.exit_status, report.counts["rows"]) == (GOOD, 10)


def test_a_run_that_was_never_closed_is_merged_and_stays_open(tmp_path):
    extractor = make_extractor(tmp_path / "0", save_every=2)
    extractor.add(known_block(0, 5))
    out = LocalStorage(tmp_path / "out")
    merge(out, [LocalStorage(tmp_path / "0")])
    report = verify(out, 3)
    assert (report.exit_status, report.counts["rows"]) == (INCOMPLETE, 4)


def test_sequences_in_two_sources_count_once(tmp_path):
    for n in (0, 1):
        block = known_block(0, 4)
        columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
        columns["position"] = block.position + np.int32(100 * n)
        with make_extractor(tmp_path / str(n), save_every=2) as extractor:
            extractor.add(RowBlock(**columns))
    out = LocalStorage(tmp_path / "out")
    merge(out, [LocalStorage(tmp_path / "0"), LocalStorage(tmp_path / "1")])
    report = verify(out, 3)
    assert (report.exit_status, report.counts["sequences"]) == (GOOD, 4)


def test_buckets_and_folders_are_merged(tmp_path, fake_gcs):
    client = fake_gcs.client()
    one = write_run(GcsStorage("gs://bucket/one", client))
    two = write_run(tmp_path / "2", first=100)
    out = GcsStorage("gs://bucket/out", client)
    merge(out, [one, two])
    assert verify(out, 3).exit_status == GOOD
    writes = fake_gcs.writes("bucket")
    merge(out, [one, two])
    assert fake_gcs.writes("bucket") | {"out/metadata.json": 0} == writes | {"out/metadata.json": 0}
    back = LocalStorage(tmp_path / "back")
    merge(back, [out])
    assert verify(back, 3).exit_status == GOOD
