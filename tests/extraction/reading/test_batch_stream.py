"""Streams of batches: every row once, in an order that can be gone on with anywhere."""

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import extraction
from extraction.errors import StoreError
from extraction.reading.dataset import ActivationDataset
from extraction.reading.read_ahead import MANY_THREADS
from extraction.storage.local import LocalStorage
from tests.extraction.known_runs import FORMS, OpenRun, expected_rows, write_run

ROWS = 23  # in files of 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """The same rows in every format."""
    return {
        form: write_run(tmp_path_factory.mktemp("run"), ROWS, (6, 12), file_format=f, dtype=dtype)
        for form in FORMS
        for f, dtype in [form]
    }


@pytest.fixture
def folder(runs) -> Path:
    return runs["safetensors", "float32"]


def numbers_in(batch: np.ndarray) -> list[int]:
    """Which rows these are; `known_rows` says how they are told."""
    return (np.asarray(batch)[:, 0] // 1000).astype(int).tolist()


def taken(stream, batches: int | None = None) -> list[list[int]]:
    return [numbers_in(batch) for batch in itertools.islice(stream, batches)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [None, 5])
def test_every_format_gives_every_row_of_every_layer(runs, form, seed):
    dataset = ActivationDataset(runs[form], [6, 12])
    batches = list(dataset.batches(5, shuffle_seed=seed, pool_rows=9))
    assert [len(batch["layer_6"]) for batch in batches] == [5, 5, 5, 5, 3]
    numbers = np.rint(np.concatenate([b["layer_6"] for b in batches])[:, 0] / 1000).astype(int)
    assert sorted(numbers) == list(range(ROWS))
    assert (numbers.tolist() == list(range(ROWS))) is (seed is None)
    for hook, name in enumerate(("layer_6", "layer_12")):
        rows = np.concatenate([batch[name] for batch in batches])
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, expected_rows(numbers, hook, form[1]))


STREAMS = {
    "batch_size": st.integers(1, 30),
    "seed": st.one_of(st.none(), st.integers(0, 3)),
    "pool_rows": st.integers(1, 30),
    "drop_last": st.booleans(),
}


@given(**STREAMS, epochs=st.integers(0, 3))
def test_every_row_comes_once_in_each_epoch(runs, batch_size, seed, pool_rows, drop_last, epochs):
    dataset = ActivationDataset(runs["raw", "float32"], 6)
    stream = dataset.batches(
        batch_size, shuffle_seed=seed, pool_rows=pool_rows, drop_last=drop_last, epochs=epochs
    )
    batches = taken(stream)
    per_epoch = ROWS // batch_size if drop_last else -(-ROWS // batch_size)
    assert len(batches) == epochs * per_epoch
    for epoch in range(epochs):
        of_epoch = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        rows = list(itertools.chain(*of_epoch))
        assert len(set(rows)) == len(rows)
        assert len(rows) == (ROWS // batch_size * batch_size if drop_last else ROWS)
        assert all(len(batch) == batch_size for batch in of_epoch[:-1])
        if seed is None:
            assert rows == list(range(len(rows)))


@given(**STREAMS, epochs=st.one_of(st.none(), st.integers(1, 2)), after=st.integers(0, 30))
def test_a_position_goes_on_with_exactly_what_would_have_followed(
    runs, batch_size, seed, pool_rows, drop_last, epochs, after
):
    if drop_last and batch_size > ROWS and epochs is None:
        return  # refused, see below
    dataset = ActivationDataset(runs["raw", "float32"], 6)
    asked: dict = {
        "shuffle_seed": seed,
        "pool_rows": pool_rows,
        "drop_last": drop_last,
        "epochs": epochs,
    }
    whole = taken(dataset.batches(batch_size, **asked), after + 5)
    first = dataset.batches(batch_size, **asked)
    begun = taken(first, after)
    position = json.loads(json.dumps(first.position))
    rest = ActivationDataset(runs["raw", "float32"], "layer_6").batches(
        batch_size, **asked, start=position
    )
    assert rest.position == position
    assert begun + taken(rest, 5) == whole
    assert taken(first, 5) == whole[after:]


@pytest.mark.parametrize("seed", [None, 3])
def test_a_position_holds_though_the_run_has_grown(tmp_path, seed):
    run = OpenRun(LocalStorage(tmp_path / "run"))
    run.commit(2, first=20, rows=4)
    run.commit(5, first=50, rows=3)
    dataset = ActivationDataset(tmp_path / "run", 6)
    run.commit(3, first=30, rows=2)
    dataset.refresh()
    asked: dict = {"shuffle_seed": seed, "pool_rows": 5, "epochs": 2}
    stream = dataset.batches(2, **asked)
    run.commit(1, first=10, rows=4)
    dataset.refresh()
    position = stream.position
    assert position["batches"] == ([[2, 3], [5, 5]] if seed else [[2, 2], [5, 5], [3, 3]])
    whole = taken(stream)
    assert sorted(itertools.chain(*whole)) == sorted([20, 21, 22, 23, 30, 31, 50, 51, 52] * 2)
    again = ActivationDataset(tmp_path / "run", 6)
    assert taken(again.batches(2, **asked, start=position)) == whole
    # A stream that is opened now has the new rows too, the same ones wherever it is opened.
    assert sorted(itertools.chain(*taken(again.batches(2)))) == [
        *range(10, 14), *range(20, 24), 30, 31, *range(50, 53),
    ]  # fmt: skip
    if seed is not None:
        assert taken(again.batches(2, **asked)) == taken(dataset.batches(2, **asked))


def test_the_same_seed_gives_the_same_rows_for_every_layer_and_in_every_process(folder):
    dataset = ActivationDataset(folder, 6)
    here = taken(dataset.batches(4, shuffle_seed=11, pool_rows=10))
    other = ActivationDataset(folder, 12).batches(4, shuffle_seed=11, pool_rows=10)
    assert [numbers_in(batch - 100) for batch in other] == here
    code = (
        "import sys; from extraction.reading.dataset import ActivationDataset\n"
        "stream = ActivationDataset(sys.argv[1], 6).batches(4, shuffle_seed=11, pool_rows=10)\n"
        "print([(batch[:, 0] // 1000).astype(int).tolist() for batch in stream])"
    )
    there = subprocess.run([sys.executable, "-c", code, str(folder)], **RUN).stdout
    assert there.strip() == str(here)


RUN: dict = {
    "cwd": Path(extraction.__file__).parents[1],
    "capture_output": True,
    "text": True,
    "check": True,
}


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("batch_size", [2, 4, 5])
def test_a_batch_is_the_users_own(folder, seed, batch_size):
    dataset = ActivationDataset(folder, 6)
    stream = dataset.batches(batch_size, shuffle_seed=seed, pool_rows=8)
    kept = []
    for batch in stream:
        kept.append((batch, batch.copy()))
        assert batch.flags.writeable
        assert batch.flags.c_contiguous
    for batch, copy in kept:
        np.testing.assert_array_equal(batch, copy)
        batch[:] = -1
    assert sorted(itertools.chain(*taken(dataset.batches(5)))) == list(range(ROWS))


@pytest.mark.parametrize("form", [("pickle", "float32"), ("raw", "bfloat16")])
@pytest.mark.parametrize("dtype", ["float32", "stored"])
def test_jax_and_torch_get_the_same_rows(runs, form, dtype):
    dataset = ActivationDataset(runs[form], [6, 12], dtype=dtype)
    plain = list(dataset.batches(5, shuffle_seed=1))
    with jax.transfer_guard("disallow"):  # they are put there, not taken
        in_jax = list(dataset.batches(5, shuffle_seed=1, framework="jax"))
    in_torch = list(dataset.batches(5, shuffle_seed=1, framework="torch"))
    for name in dataset.hook_points:
        for expected, jaxs, torchs in zip(plain, in_jax, in_torch, strict=True):
            assert isinstance(jaxs[name], jax.Array)
            assert isinstance(torchs[name], torch.Tensor)
            assert jaxs[name].dtype == expected[name].dtype
            bfloat16 = expected[name].dtype == ml_dtypes.bfloat16
            assert torchs[name].dtype == (torch.bfloat16 if bfloat16 else torch.float32)
            wide = expected[name].astype(np.float32)
            np.testing.assert_array_equal(np.asarray(jaxs[name]).astype(np.float32), wide)
            np.testing.assert_array_equal(torchs[name].float().numpy(), wide)


def test_torchs_own_loader_takes_the_dataset(folder):
    loader = torch.utils.data.DataLoader(ActivationDataset(folder, 6), batch_size=6)
    assert [numbers_in(batch.numpy()) for batch in loader] == taken(
        ActivationDataset(folder, 6).batches(6)
    )


def test_a_stream_without_end_goes_on_in_new_orders(folder):
    stream = ActivationDataset(folder, 6).batches(ROWS, shuffle_seed=0, pool_rows=8, epochs=None)
    epochs = taken(stream, 10)
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert (stream.position["epoch"], stream.position["row"]) == (10, 0)
    stream.close()
    assert list(stream) == []


def test_batches_that_can_never_be_filled_are_refused_in_a_stream_without_end(folder):
    dataset = ActivationDataset(folder, 6)
    stream = dataset.batches(ROWS + 1, drop_last=True, epochs=None)
    with pytest.raises(StoreError, match="rows for one batch"):
        next(stream)
    assert list(dataset.batches(ROWS + 1, drop_last=True, epochs=3)) == []


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 0},
        {"batch_size": 2.0},
        {"batch_size": True},
        {"shuffle_seed": -1},
        {"shuffle_seed": "a"},
        {"pool_rows": 0},
        {"pool_rows": None},
        {"epochs": -1},
        {"framework": "tensorflow"},
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, asked):
    with pytest.raises(StoreError, match=next(iter(asked))):
        ActivationDataset(folder, 6).batches(**{"batch_size": 2, **asked})


def test_numpys_numbers_serve_as_settings(folder):
    dataset = ActivationDataset(folder, 6)
    stream = dataset.batches(np.int64(4), shuffle_seed=np.int32(3), pool_rows=np.uint8(8))
    assert json.loads(json.dumps(stream.position)) == stream.position
    assert taken(stream) == taken(dataset.batches(4, shuffle_seed=3, pool_rows=8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run_id": "other"}, "run_id"),
        ({"shuffle_seed": 2}, "shuffle_seed"),
        ({"shuffle_seed": None}, "shuffle_seed"),
        ({"pool_rows": 9}, "pool_rows"),
        ({"version": 2}, "start must be"),
        ({"epoch": -1}, "start must be"),
        ({"row": "1"}, "start must be"),
        ({"row": True}, "start must be"),
        ({"rows": None}, "start must be"),
        ({"row": ROWS + 1}, "row 24 of 23"),
        ({"rows": ROWS + 1}, "of 24"),
        ({"batches": [[1, 7]]}, "batch 7"),
        ({"batches": [[1, 5]]}, "20 rows"),
        ({"batches": None}, "list of ranges"),
    ],
)
def test_a_position_of_something_else_is_refused(folder, change, words):
    dataset = ActivationDataset(folder, 6)
    position = dataset.batches(2, shuffle_seed=1, pool_rows=8).position
    with pytest.raises(StoreError, match=words):
        dataset.batches(2, shuffle_seed=1, pool_rows=8, start=position | change)


@pytest.mark.parametrize("start", [{}, {"epoch": 0, "row": 0}, [], "position", 7])
def test_what_is_no_position_is_refused(folder, start):
    with pytest.raises(StoreError, match="start must be"):
        ActivationDataset(folder, 6).batches(2, start=start)


@pytest.mark.parametrize("seed", [None, 0])
def test_what_comes_before_a_position_is_not_read_again(tmp_path, seed):
    folder = write_run(tmp_path / "run", ROWS)
    dataset = ActivationDataset(folder, 6)
    first = dataset.batches(4, shuffle_seed=seed, pool_rows=4, epochs=2)
    begun = [number for batch in taken(first, 4) for number in batch]
    rest = taken(first)
    for number in {row // 4 for row in begun}:
        (folder / f"layer_6_batch_{number + 1:06d}.safetensors").unlink()
    position = dataset.batches(4, shuffle_seed=seed, pool_rows=4).position | {"row": 16}
    again = dataset.batches(4, shuffle_seed=seed, pool_rows=4, start=position)
    assert taken(again) == rest[:2]


def test_no_thread_outlives_a_closed_stream(folder):
    before = threading.active_count()
    for seed in (None, 0):
        with ActivationDataset(folder, 6).batches(2, shuffle_seed=seed, epochs=None) as stream:
            next(stream)
            assert threading.active_count() > before
        assert threading.active_count() == before
        assert list(stream) == []


ABANDONED = """
import gc, sys, threading
from extraction.reading.dataset import ActivationDataset
dataset = ActivationDataset(sys.argv[1], 6, verify_checksums=False)
gc.set_threshold(30, 2, 2)  # collected in any thread, at any time
for seed in (None, 0):
    for cycle in (False, True):
        for _ in range(100):
            stream = dataset.batches(3, shuffle_seed=seed, epochs=None)
            stream.itself = stream if cycle else None  # only the collector can end it
            next(stream)
held = [dataset.batches(3, epochs=None) for _ in range(20)]
for stream in held:
    stream.itself = stream
    next(stream)
del held, stream
gc.collect()
for thread in threading.enumerate()[1:]:
    thread.join(10)
print(threading.active_count())
held = dataset.batches(3, epochs=None)
next(held)  # still there when the process ends
"""


def test_abandoned_streams_end_without_a_word(folder):
    command = [sys.executable, "-W", "error", "-c", ABANDONED, str(folder)]
    done = subprocess.run(command, **RUN, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_memory_of_a_shuffled_stream_is_that_of_two_pools(tmp_path):
    code = """
import resource, sys
import numpy as np
from extraction.reading.dataset import ActivationDataset
dataset = ActivationDataset(sys.argv[1], 6)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
for batch in dataset.batches(256, shuffle_seed=0, pool_rows=2048, epochs=2):
    assert batch.shape[1] == 2000
print(peak() - before)
"""
    rng = np.random.default_rng(0)
    config = extraction.ActivationExtractionConfig(
        output_dir=tmp_path / "run",
        layers_to_extract=(6,),
        hidden_dim=2000,
        model_name="m",
        save_every_n_samples=512,
        file_format="safetensors",
    )
    with extraction.ActivationExtractor(config) as extractor:
        for _ in range(20):  # 80 MB; a pool is 16 MB, a file 4
            rows = rng.standard_normal((512, 2000), np.float32)
            extractor.extract_layer_activation(6, rows, ["task"] * 512, list(range(512)))
    grown = int(subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], **RUN).stdout)
    assert grown < 2 * 16 + 4 * 4 + 10


UNFINISHED = """
import sys, threading
import jax  # with it, modules that threads need are gone before the stream is
from extraction.reading.dataset import ActivationDataset
dataset = ActivationDataset(sys.argv[1], 6)
asked = {"shuffle_seed": int(sys.argv[2]) if sys.argv[2] else None, "pool_rows": 8, "epochs": None}
stream = dataset.batches(3, framework="jax", **asked)
next(stream)
begun = threading.Event()
def consume():
    for _ in dataset.batches(3, **asked):
        begun.set()
threading.Thread(target=consume, daemon=True).start()
begun.wait()
"""


@pytest.mark.parametrize("seed", ["", "5"])
def test_a_program_that_ends_amid_streams_prints_nothing(folder, seed):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", UNFINISHED, str(folder), seed]
    done = subprocess.run(command, **RUN, timeout=120)
    assert (done.stdout, done.stderr) == ("", "")


UNREAD = """
import sys, time
from pathlib import Path
from extraction.reading.dataset import ActivationDataset
from extraction.storage.local import LocalStorage
class Slow(LocalStorage):
    is_local = False
    open_local = lambda self, name: None
    def get(self, name):
        if name.endswith(".safetensors"):
            time.sleep(0.5)
            print("read", flush=True)
        return (self.folder / name).read_bytes()
stream = ActivationDataset(Slow(Path(sys.argv[1])), 6).batches(3, shuffle_seed=1, pool_rows=80)
next(stream)
print("end", flush=True)
"""


def test_the_end_of_a_program_does_not_wait_for_files_that_are_only_queued(tmp_path):
    folder = write_run(tmp_path / "run", 160)  # 40 files, 20 of a pool
    done = subprocess.run([sys.executable, "-c", UNREAD, str(folder)], **RUN, timeout=60)
    first, rest = done.stdout.split("end\n")
    assert first.count("read") >= 20
    assert rest.count("read") <= MANY_THREADS


def test_a_stream_in_a_forked_process_is_refused(folder):
    code = (
        "import os, sys; from extraction.reading.dataset import ActivationDataset\n"
        "stream = ActivationDataset(sys.argv[1], 6).batches(4)\n"
        "next(stream)\n"
        "if not os.fork():\n"
        "    try: next(stream)\n"
        "    except Exception as error: print(type(error).__name__, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], **RUN, timeout=60)
    assert done.stdout == "StoreError\n"
