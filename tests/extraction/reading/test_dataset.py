"""Rows by number and what is told of a run; damage, streams and folders without `_run/` apart."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import extraction
from extraction.errors import StoreError
from extraction.formats.float_types import bfloat16_bits
from extraction.reading.dataset import ActivationDataset
from extraction.run.identity import RunIdentity, begin
from extraction.run.rows import RowBlock
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from tests.extraction.known_rows import TIME, WIDTH, known_block, known_values
from tests.extraction.known_runs import FORMS, MODEL, OpenRun, expected_rows, write_run

ROWS, SAVE_EVERY, LAYERS = 10, 4, (6, 12)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """The same rows in every format."""
    return {
        form: write_run(
            tmp_path_factory.mktemp("run"), ROWS, LAYERS, file_format=form[0], dtype=form[1]
        )
        for form in FORMS
    }


@pytest.fixture
def folder(runs) -> Path:
    return runs["safetensors", "float32"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_row_of_every_format_by_slice_number_and_array(runs, form, layer):
    dataset = ActivationDataset(runs[form], layer)
    expected = expected_rows(range(ROWS), LAYERS.index(layer), form[1])
    assert len(dataset) == ROWS
    everything = dataset[:]
    assert everything.dtype == np.float32
    assert everything.flags.writeable
    np.testing.assert_array_equal(everything, expected)
    for number in range(-ROWS, ROWS):
        row = dataset[number]
        assert row.shape == (WIDTH,)
        np.testing.assert_array_equal(row, expected[number])
    for start in range(ROWS):
        for stop in range(start, ROWS + 1):
            np.testing.assert_array_equal(dataset[start:stop], expected[start:stop])


@given(data=st.data())
def test_what_numpy_takes_for_an_index_gives_what_numpy_would(runs, data):
    form = data.draw(st.sampled_from(FORMS))
    dataset = ActivationDataset(runs[form], LAYERS)
    numbers = st.integers(-ROWS, ROWS - 1)
    index = data.draw(
        st.one_of(
            st.lists(numbers),
            st.lists(numbers).map(lambda found: np.array(found, np.int32)),
            st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(np.array),
            st.slices(ROWS),
            numbers.map(np.int64),
        )
    )
    plain = np.array(index, np.int64) if isinstance(index, list) else index
    everything = expected_rows(range(ROWS), 1, form[1])
    np.testing.assert_array_equal(dataset[index]["layer_12"], everything[plain])
    keys, samples = dataset.keys(index), np.atleast_1d(np.arange(ROWS)[plain])
    assert keys.sample_idx.tolist() == samples.tolist()
    assert keys.position.tolist() == (samples + 10).tolist()


def test_an_array_is_the_users_own(folder):
    dataset = ActivationDataset(folder, 6)
    for index in (slice(0, 2), 1, [1, 0]):
        dataset[index][...] = -1
    np.testing.assert_array_equal(dataset[:], expected_rows(range(ROWS)))


def test_several_layers_are_aligned_row_by_row(folder):
    dataset = ActivationDataset(folder, ["layer_12", 6])
    assert dataset.hook_points == ("layer_12", "layer_6")
    rows = dataset[[9, 0, 5]]
    assert list(rows) == ["layer_12", "layer_6"]
    np.testing.assert_array_equal(rows["layer_12"], known_values(0, 10, 1)[[9, 0, 5]])
    np.testing.assert_array_equal(rows["layer_6"], known_values(0, 10, 0)[[9, 0, 5]])
    assert dataset[3]["layer_6"].shape == (WIDTH,)
    assert list(ActivationDataset(folder, [6])[:]) == ["layer_6"]


@pytest.mark.parametrize("form", FORMS)
def test_keys_tell_where_rows_come_from(runs, form):
    keys = ActivationDataset(runs[form], 6).keys()
    expected = known_block(0, ROWS)
    assert len(keys) == ROWS
    assert keys.activations == {}
    for field in dataclasses.fields(RowBlock):
        if field.name not in ("activations", "vocabulary"):
            found = getattr(keys, field.name)
            assert found.dtype == getattr(expected, field.name).dtype
            assert found.tolist() == getattr(expected, field.name).tolist()
    assert set(keys.timestamps) == {TIME}


def test_find_gives_the_rows_of_a_task(folder):
    dataset = ActivationDataset(folder, 6)
    assert dataset.find("task_7").tolist() == [7]
    assert dataset.find("task_7", sample_idx=7).tolist() == [7]
    assert dataset.find("task_7", sample_idx=6).tolist() == []
    assert dataset.find("none").tolist() == []


@pytest.mark.parametrize("form", FORMS)
def test_info_tells_of_the_run(runs, form):
    info = ActivationDataset(runs[form], 12).info
    assert info.model_name == MODEL
    assert info.hook_points == ("layer_6", "layer_12")
    assert info.width == {"layer_12": WIDTH}
    assert (info.format, info.dtype) == form
    assert info.rows == info.sequences == ROWS
    assert info.complete is True
    assert len(info.run_id or "") == 32
    assert info.statistics["layer_6"]["rows"] == ROWS
    expected = expected_rows(range(ROWS), 0, form[1]).astype(float).mean()
    assert info.statistics["layer_6"]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("form", FORMS)
def test_stored_dtype_gives_what_is_stored(runs, form):
    dataset = ActivationDataset(runs[form], 6, dtype="stored")
    rows = dataset[2:7]
    assert rows.dtype == (ml_dtypes.bfloat16 if form[1] == "bfloat16" else np.float32)
    if form[1] == "bfloat16":
        bits = bfloat16_bits(known_values(2, 5))
        assert rows.view(np.uint16).tolist() == bits.tolist()
    np.testing.assert_array_equal(rows.astype(np.float32), expected_rows(range(2, 7), 0, form[1]))
    assert next(dataset.batches(3)).dtype == rows.dtype


def test_bfloat16_without_ml_dtypes_is_refused_with_the_way_out(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(StoreError, match="dtype='float32'"):
        ActivationDataset(runs["raw", "bfloat16"], 6, dtype="stored")
    ActivationDataset(runs["raw", "float32"], 6, dtype="stored")
    assert ActivationDataset(runs["raw", "bfloat16"], 6)[:].dtype == np.float32


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (7, "no layer_7"),
        ("layer_7", "no layer_7"),
        ([6, 7], "no layer_7"),
        ([], "list of layers is empty"),
        (None, "layer is needed"),
        ([6, "layer_6"], "twice"),
        (-1, "no layer_-1"),
        (6.0, "a layer is a number"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(folder, layer, words):
    with pytest.raises(StoreError, match=words) as refusal:
        ActivationDataset(folder, layer)
    if words in ("no layer_7", "layer is needed"):
        assert "layer_6, layer_12" in str(refusal.value)


def test_the_only_layer_need_not_be_named(tmp_path):
    write_run(tmp_path / "run", layers=(3,))
    assert ActivationDataset(tmp_path / "run").hook_points == ("layer_3",)


@pytest.mark.parametrize("option", [{"dtype": "float16"}, {"on_bad": "ignore"}])
def test_unknown_options_are_refused(folder, option):
    with pytest.raises(StoreError, match="must be"):
        ActivationDataset(folder, 6, **option)


@pytest.mark.parametrize(
    "index", [ROWS, -ROWS - 1, [0, ROWS], [[0]], [0.5], "a", (1, 2), np.zeros(3, bool), None]
)
def test_rows_that_are_not_there_are_an_index_error(folder, index):
    with pytest.raises(IndexError):
        ActivationDataset(folder, 6)[index]


def test_it_can_be_iterated_row_by_row(folder):
    np.testing.assert_array_equal(list(ActivationDataset(folder, 6)), expected_rows(range(ROWS)))


def test_a_folder_without_a_run_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(StoreError, match="holds no run"):
            ActivationDataset(place, 6)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_it_reads(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    dataset = ActivationDataset(folder, LAYERS)
    assert (
        len(dataset.keys())
        == dataset.info.rows
        == sum(len(b["layer_6"]) for b in dataset.batches(3))
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_only_files_that_are_touched_are_read(tmp_path, monkeypatch):
    write_run(tmp_path / "run", file_format="pickle")
    storage = LocalStorage(tmp_path / "run", writable=False)
    asked = []
    open_file = storage.open_local
    monkeypatch.setattr(storage, "open_local", lambda name: asked.append(name) or open_file(name))
    dataset = ActivationDataset(storage, 6)
    asked.clear()
    assert dataset[5:7].shape == (2, WIDTH)
    assert set(asked) == {"layer_6_batch_000002.pkl"}


@pytest.mark.parametrize("form", FORMS)
def test_the_cache_holds_no_more_bytes_than_told(tmp_path, form, monkeypatch):
    write_run(tmp_path / "run", 40, file_format=form[0], dtype=form[1])
    dataset = ActivationDataset(tmp_path / "run", 6, cache_bytes=3000)
    files = dataset._files
    for number in [*range(40), *range(40)]:
        assert dataset[number][0] == expected_rows([number], 0, form[1])[0, 0]
        assert files._cached_bytes <= 3000 or len(files._cached) == 1
        assert files._cached_bytes == sum(cost for _, cost in files._cached.values())
    roomy = ActivationDataset(tmp_path / "run", 6)
    assert roomy[:].shape == (40, WIDTH)
    assert len(roomy._files._cached) == 10
    monkeypatch.setattr(roomy._files, "_parse", None)  # everything is there already
    np.testing.assert_array_equal(roomy[:], expected_rows(range(40), 0, form[1]))


@pytest.mark.parametrize("file_format", ["safetensors", "raw"])
def test_few_rows_of_a_large_mapped_file_need_little_memory(tmp_path, file_format):
    rows, width = 4000, 4000
    block = known_block(0, rows)
    values = np.ones((rows, width), np.float32)
    config = extraction.ActivationExtractionConfig(
        output_dir=tmp_path / "run",
        layers_to_extract=(6,),
        hidden_dim=width,
        model_name=MODEL,
        save_every_n_samples=rows,
        file_format=file_format,
    )
    with extraction.ActivationExtractor(config) as extractor:
        extractor.add(dataclasses.replace(block, activations={"layer_6": values}))
    code = (
        "import resource, sys; from extraction.reading.dataset import ActivationDataset\n"
        "dataset = ActivationDataset(sys.argv[1], 6, verify_checksums=False)\n"
        "assert dataset[5].sum() == 4000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", text, str(tmp_path / "run")], **RUN).stdout)
        for text in (code, code.replace("dataset[5].sum()", "4000"))
    ]
    assert peaks[0] - peaks[1] < 8_000  # kB, of a file of 64,000


RUN: dict = {
    "cwd": Path(extraction.__file__).parents[1],
    "capture_output": True,
    "text": True,
    "check": True,
}

BLOCKED = """
import sys
for name in ("jax", "jaxlib", "torch", "ml_dtypes", "google.cloud", "requests", "transformers",
             "qwen_hooks.model"):
    sys.modules[name] = None  # importing it fails
from extraction.reading.dataset import ActivationDataset
for folder in sys.argv[1:]:
    dataset = ActivationDataset(folder, [6, 12])
    rows, keys = dataset[:], dataset.keys()
    assert sum(len(batch["layer_6"]) for batch in dataset.batches(3, shuffle_seed=1)) == len(keys)
    assert len(dataset.outlier_rows()["layer_6"]) == 0, dataset.info
    for framework in ("jax", "torch"):
        try:
            dataset.batches(3, framework=framework)
        except ImportError:
            continue
        raise AssertionError(framework)
roots = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print(sorted(roots - set(sys.stdlib_module_names) - {"__main__", "__mp_main__"}))
"""


def test_numpy_and_google_crc32c_are_all_it_needs(runs):
    folders = [str(folder) for folder in runs.values()]
    loaded = subprocess.run([sys.executable, "-c", BLOCKED, *folders], **RUN).stdout
    ignored = ("_", "sitecustom", "distutils", "cython_runtime")  # of python's and numpy's own
    roots = {root for root in eval(loaded) if not root.startswith(ignored)}
    assert roots == {"extraction", "google_crc32c", "numpy", "qwen_hooks", "tensor_files"}


def test_a_run_that_is_being_written(tmp_path):
    storage = LocalStorage(tmp_path / "run")
    run = OpenRun(storage, (6, 12), planned=5)
    dataset = ActivationDataset(tmp_path / "run", [6, 12])
    assert len(dataset) == 0
    assert dataset[:]["layer_6"].shape == (0, WIDTH)
    assert dataset.info.complete is False
    assert list(dataset.batches(2)) == list(dataset.batches(2, shuffle_seed=0, epochs=None)) == []

    run.commit(2, first=20, rows=3)
    run.commit(5, first=50, rows=2)
    assert len(dataset) == 0  # until it is told to look
    assert dataset.refresh() == 5
    run.commit(1, first=10, rows=4)  # later, though its number is smaller
    run.commit(3, first=0, rows=0)
    assert dataset.refresh() == 4
    assert dataset.refresh() == 0
    assert dataset.keys().sample_idx.tolist() == [20, 21, 22, 50, 51, 10, 11, 12, 13]
    assert dataset.info.complete is False
    run.commit(4, first=40, rows=1)
    assert dataset.refresh() == 1
    info = dataset.info
    assert (info.complete, info.rows, info.sequences) == (True, 10, 10)
    numbers = dataset.keys().sample_idx
    assert numbers[:9].tolist() == [20, 21, 22, 50, 51, 10, 11, 12, 13]
    for hook, rows in enumerate(dataset[:].values()):
        np.testing.assert_array_equal(rows, expected_rows(numbers, hook))
    fresh = ActivationDataset(tmp_path / "run", 6)
    assert fresh.keys().sample_idx.tolist() == [10, 11, 12, 13, 20, 21, 22, 40, 50, 51]


@pytest.mark.parametrize("file_format", ["pickle", "raw"])
def test_other_hook_points_have_widths_of_their_own(tmp_path, file_format):
    storage = LocalStorage(tmp_path / "run")
    hooks = ("layer_6", "blocks.6.mlp.hook_post")
    begin(
        storage,
        RunIdentity.new(
            model_name=MODEL, hook_points=hooks, hidden_dim=WIDTH, file_format=file_format
        ),
    )
    committer, rows = Committer(storage, hooks, file_format), known_block(0, 4)
    wide = np.arange(44, dtype=np.float32).reshape(4, 11)
    committer.commit(1, dataclasses.replace(rows, activations={**rows.activations, hooks[1]: wide}))
    dataset = ActivationDataset(tmp_path / "run", hooks[1])
    assert dataset.info.width == {hooks[1]: 11}
    assert dataset[:].tolist() == wide.tolist()
    both = ActivationDataset(tmp_path / "run", [6, hooks[1]])
    for seed in (None, 0):
        batches = list(both.batches(3, shuffle_seed=seed))
        assert [batch[hooks[1]].shape for batch in batches] == [(3, 11), (1, 11)]
        assert [batch["layer_6"].shape for batch in batches] == [(3, 4), (1, 4)]
    next(tmp_path.glob("run/blocks*")).unlink()
    damaged = ActivationDataset(tmp_path / "run", hooks[1], on_bad="skip")
    assert damaged[:].shape == (0, WIDTH)  # nothing tells that it is another


def test_files_without_a_commit_record_are_not_read(tmp_path):
    run = write_run(tmp_path / "run", 8)
    (run / "_run/commits/000002.json").unlink()
    assert len(ActivationDataset(run, 6)) == 4


def write_rows(folder: Path, values: np.ndarray) -> Path:
    config = extraction.ActivationExtractionConfig(
        output_dir=folder,
        layers_to_extract=(6,),
        hidden_dim=WIDTH,
        model_name=MODEL,
        save_every_n_samples=7,
    )
    with extraction.ActivationExtractor(config) as extractor:
        block = known_block(0, len(values))
        extractor.add(dataclasses.replace(block, activations={"layer_6": values}))
    return folder


@pytest.mark.parametrize("with_statistics", [True, False])
def test_outlier_rows_are_named_and_stay(tmp_path, with_statistics):
    values = np.ones((20, WIDTH), np.float32)
    values[3] = 100
    values[9, 1] = np.nan
    values[11, 2] = -np.inf
    values[13] = 9  # within ten times the median
    values[19] = 1e38  # whose square float32 could not hold
    write_rows(tmp_path / "run", values)
    if not with_statistics:
        (tmp_path / "run/_run").rename(tmp_path / "away")
        path = tmp_path / "run/metadata.json"
        path.write_text(path.read_text().replace('"statistics"', '"other"'))
    dataset = ActivationDataset(tmp_path / "run", 6)
    assert dataset.outlier_rows().tolist() == [3, 9, 11, 19]
    assert dataset.outlier_rows(factor=8).tolist() == [3, 9, 11, 13, 19]
    assert len(dataset) == 20
    several = ActivationDataset(tmp_path / "run", [6]).outlier_rows(50)
    assert several["layer_6"].tolist() == [3, 9, 11, 19]


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_outliers_of_rows_without_a_median_or_with_none_but_zero(tmp_path, value):
    values = np.full((3, WIDTH), value, np.float32)
    dataset = ActivationDataset(write_rows(tmp_path / "run", values), 6)
    assert dataset.outlier_rows().tolist() == ([] if value == 0 else [0, 1, 2])
