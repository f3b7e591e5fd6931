"""Batches for torch's DataLoader: every row once in an epoch, whatever the workers."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from google.cloud import storage as google_storage
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

import extraction
from extraction.errors import StoreError
from extraction.reading.dataset import ActivationDataset
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from tests.extraction.known_runs import OpenRun, expected_rows, write_run
from tests.fake_gcs.server import FakeGcs

ROWS = 23  # in files of 4
ADDRESS = "gs://bucket/some/run"


def in_a_program(cases: list[dict], folder: Path) -> list[dict]:
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-m", "tests.extraction.torch_workers", str(folder / "cases.json")],
        cwd=Path(extraction.__file__).parents[1],
        # Python's own tracker may unlink a semaphore of a worker twice, and warns of it.
        env=os.environ | {"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    results, threads = done.stdout.splitlines()
    assert threads == "[]"
    return json.loads(results)


def check(cases: list[dict], results: list[dict]) -> None:
    for case, result in zip(cases, results, strict=True):
        for epoch in result["epochs"]:
            rows = list(itertools.chain(*epoch))
            assert sorted(rows) == list(range(ROWS)), case
            assert all(len(batch) <= case["batch_size"] for batch in epoch)
        if len(result["epochs"]) > 1:
            assert result["epochs"][0] != result["epochs"][1], case
        if "stop" in case:
            assert result["halves"] == result["epochs"][0], case


def case_of(address: str | Path, workers: int, method: str, seed: int | None = 7, **more) -> dict:
    return {
        "address": str(address),
        "workers": workers,
        "method": method,
        "batch_size": 3,
        "asked": {"shuffle_seed": seed, "pool_rows": 9},
        "epochs": 1,
        **more,
    }


def test_every_row_comes_once_with_0_forked_and_spawned_workers(tmp_path):
    folder = write_run(tmp_path / "run", ROWS)
    cases = [
        case_of(folder, 0, "fork", epochs=2, stop=4),
        case_of(folder, 0, "fork", None, stop=4),
        case_of(folder, 2, "fork", epochs=2, stop=4),
        case_of(folder, 2, "fork", None, stop=5),
        case_of(folder, 2, "fork", epochs=2, persistent=True),
        case_of(folder, 3, "fork", stop=7),  # when one has ended
        case_of(folder, 2, "spawn"),
        case_of(folder, 2, "forkserver", epochs=2, persistent=True, stop=1),
    ]
    check(cases, in_a_program(cases, tmp_path))


def test_workers_read_from_a_bucket(fake_gcs: FakeGcs, tmp_path, monkeypatch):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    write_run(tmp_path / "spool", ROWS, gcs_bucket=ADDRESS)
    cases = [case_of(ADDRESS, 2, "fork", stop=4), case_of(ADDRESS, 2, "forkserver")]
    check(cases, in_a_program(cases, tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), ROWS, (6, 12), file_format="raw")


def numbers_in(stream) -> list[list[int]]:
    return [(np.asarray(batch)[:, 0] // 1000).astype(int).tolist() for batch in stream]


@given(
    parts=st.integers(1, 9),
    seed=st.one_of(st.none(), st.integers(0, 3)),
    pool_rows=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 2),
)
def test_parts_of_a_stream_give_every_row_once_together(
    folder, parts, seed, pool_rows, batch_size, epochs
):
    dataset = ActivationDataset(folder, 6)
    asked: dict = {"shuffle_seed": seed, "pool_rows": pool_rows}
    rows = []
    for part in range(parts):
        stream = dataset.batches(batch_size, **asked, part=(part, parts), epochs=epochs)
        begun = numbers_in(itertools.islice(stream, 2))
        again = dataset.batches(
            batch_size, **asked, part=(part, parts), epochs=epochs, start=stream.position
        )
        rest = numbers_in(stream)
        assert numbers_in(again) == rest
        rows += itertools.chain(*begun, *rest)
    assert sorted(rows) == sorted(list(range(ROWS)) * epochs)


def test_parts_without_end_go_on_though_one_has_no_file(folder):
    dataset = ActivationDataset(folder, 6)
    asked: dict = {"shuffle_seed": 0, "epochs": None}
    assert numbers_in(dataset.batches(4, **asked, part=(6, 7))) == []
    with dataset.batches(4, **asked, part=(5, 7)) as stream:
        assert len(numbers_in(itertools.islice(stream, 5))) == 5


@pytest.mark.parametrize("part", [(1, 1), (-1, 2), (0, 0), (0,), 0, "01", (0.0, 1), None])
def test_parts_that_there_are_not_are_refused(folder, part):
    with pytest.raises(StoreError, match="part must be"):
        ActivationDataset(folder, 6).batches(4, part=part)


def test_batches_are_torchs_and_those_of_the_dataset(folder):
    dataset = ActivationDataset(folder, [6, 12])
    batches = dataset.torch(5, shuffle_seed=1, pool_rows=9)
    assert isinstance(batches, IterableDataset)
    expected = list(dataset.batches(5, shuffle_seed=1, pool_rows=9, framework="torch"))
    for found, wanted in zip(DataLoader(batches, batch_size=None), expected, strict=True):
        assert list(found) == ["layer_6", "layer_12"]
        for name, values in found.items():
            assert torch.equal(values, wanted[name])
    dropped = dataset.torch(5, drop_last=True)
    assert [len(batch["layer_6"]) for batch in dropped] == [5] * (ROWS // 5)


def test_a_position_holds_after_every_batch_and_between_epochs(folder):
    dataset = ActivationDataset(folder, 6)
    batches = dataset.torch(3, shuffle_seed=2, pool_rows=8)
    whole = numbers_in(batches)
    for given_ in range(len(whole)):
        position = batches.position(given_, 0)
        rest = dataset.torch(3, shuffle_seed=2, pool_rows=8, start=position)
        assert numbers_in(rest) == whole[given_:]
        assert rest.position(1, 0) == batches.position(given_ + 1, 0)
    position = batches.position(len(whole), 0)
    assert (position["epoch"], position["given"]) == (1, 0)
    following = dataset.torch(3, shuffle_seed=2, pool_rows=8, start=position)
    batches.set_epoch(1)
    second = numbers_in(batches)
    assert numbers_in(following) == second != whole
    following.set_epoch(0)
    assert numbers_in(following) == whole


def test_a_position_holds_though_the_run_has_grown(tmp_path):
    run = OpenRun(LocalStorage(tmp_path / "run"))
    run.commit(2, first=20, rows=4)
    run.commit(5, first=50, rows=3)
    batches = ActivationDataset(tmp_path / "run", 6).torch(2, shuffle_seed=1)
    whole, position = numbers_in(batches), batches.position(1, 0)
    run.commit(1, first=10, rows=4)
    again = ActivationDataset(tmp_path / "run", 6)
    assert numbers_in(again.torch(2, shuffle_seed=1, start=position)) == whole[1:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run_id": "other"}, "run_id"),
        ({"shuffle_seed": 2}, "shuffle_seed"),
        ({"pool_rows": 9}, "pool_rows"),
        ({"batch_size": 3}, "batch_size"),
        ({"drop_last": True}, "drop_last"),
        ({"batches": [[1, 9]]}, "batch 7"),
        ({"rows": 3}, "row"),
        ({"version": 2}, "start must be"),
        ({"given": -1}, "start must be"),
        ({"epoch": 1 << 63}, "start must be"),
        ({"workers": 0}, "start must be"),
        ({"workers": 3}, "num_workers=3"),
        ({"given": 99}, "99 batches"),
    ],
)
def test_a_position_of_something_else_is_refused(folder, change, words):
    dataset = ActivationDataset(folder, 6)
    position = dataset.torch(2, shuffle_seed=1, pool_rows=8).position(2, 0)
    with pytest.raises(StoreError, match=words):
        next(iter(dataset.torch(2, shuffle_seed=1, pool_rows=8, start=position | change)))


@pytest.mark.parametrize("start", [{}, [], "position", 7])
def test_what_is_no_position_is_refused(folder, start):
    dataset = ActivationDataset(folder, 6)
    with pytest.raises(StoreError, match="start must be"):
        dataset.torch(2, start=start)
    with pytest.raises(StoreError, match="start must be"):
        dataset.torch(2, start=dataset.batches(2).position)


def test_what_cannot_be_counted_has_no_position(folder):
    batches = ActivationDataset(folder, 6, on_bad="skip").torch(2)
    with pytest.raises(StoreError, match="on_bad"):
        batches.position(1, 0)
    with pytest.raises(StoreError, match="12 batches"):
        ActivationDataset(folder, 6).torch(2).position(13, 0)


def test_settings_that_do_not_fit_are_refused_at_once(folder):
    with pytest.raises(StoreError, match="batch_size"):
        ActivationDataset(folder, 6).torch(0)


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_pickled_dataset_has_the_same_rows_under_the_same_numbers(tmp_path, on_bad):
    run = OpenRun(LocalStorage(tmp_path / "run"))
    run.commit(2, first=20, rows=4)
    dataset = ActivationDataset(tmp_path / "run", 6, on_bad=on_bad)
    run.commit(1, first=10, rows=2)
    dataset.refresh()
    dataset[0:3], dataset.info  # files that are open, and what is known of them
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[:], expected_rows([20, 21, 22, 23, 10, 11]))
    np.testing.assert_array_equal(copy[:], dataset[:])
    assert copy.info == dataset.info
    assert copy.keys().sample_idx.tolist() == dataset.keys().sample_idx.tolist()
    run.commit(3, first=30, rows=1)
    assert (copy.refresh(), len(copy), len(dataset)) == (1, 7, 6)


def test_pickling_reads_no_file(folder):
    dataset = ActivationDataset(folder, 6)
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    hidden = folder.with_name("elsewhere")
    folder.rename(hidden)
    try:
        copy = pickle.loads(data)
    finally:
        hidden.rename(folder)
    np.testing.assert_array_equal(copy[3], dataset[3])


def test_a_bucket_is_opened_anew_by_its_address(fake_gcs: FakeGcs, tmp_path, monkeypatch):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    write_run(tmp_path / "spool", ROWS, gcs_bucket=ADDRESS)
    dataset = ActivationDataset(ADDRESS, 6)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[:], dataset[:])
    client = fake_gcs.client()
    assert isinstance(client, google_storage.Client)
    with pytest.raises(pickle.PicklingError, match="cannot be pickled"):
        pickle.dumps(ActivationDataset(GcsStorage(ADDRESS, client), 6))


FORKED = """
import os, sys
from google.cloud import storage
made = []
class Client(storage.Client):
    def __init__(self, *args, **kwargs):
        made.append(os.getpid())
        super().__init__(*args, **kwargs)
plain, storage.Client = storage.Client, Client
from extraction.errors import StoreError
from extraction.storage.gcs import GcsStorage
opened, given = GcsStorage("gs://bucket/run"), GcsStorage("gs://bucket/run", plain())
opened.put_new("name", b"content"), given.names()
if not os.fork():
    assert opened.get("name") == b"content"
    assert made == [os.getppid(), os.getpid()]
    try:
        given.names()
    except StoreError:
        print("refused", flush=True)
    os._exit(0)
sys.exit(os.wait()[1])
"""


def test_a_forked_process_makes_connections_of_its_own(fake_gcs: FakeGcs):
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        cwd=Path(extraction.__file__).parents[1],
        env=os.environ | fake_gcs.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")
