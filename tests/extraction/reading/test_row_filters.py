"""What filters leave out of streams and of numbers, against numpy over all rows."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest

from extraction import ActivationDataset, ActivationWriter, RowBlock, StoreError
from extraction.maintenance.convert import convert
from extraction.maintenance.merge import merge
from extraction.storage.local import LocalStorage

SPECIAL = (1, 2)
WIDTHS = {"layer_3": 4, "layers.0.mlp.neurons": 6}
ROWS_PER_FILE = 23


def rows_of(seed: int, samples: int = 20, length: int = 7) -> RowBlock:
    """Samples whose first tokens are special and sinks, with other sinks, and rows that are not
    finite; number 0 of a row tells which one it is."""
    random = np.random.default_rng(seed)
    rows = samples * length
    position = np.tile(np.arange(length), samples)
    token_id = np.where(position == 0, 1, random.integers(2, 9, rows))
    values = {}
    for hook, width in WIDTHS.items():
        values[hook] = random.standard_normal((rows, width)).astype(np.float32)
        values[hook][:, 0] = 1 + np.arange(rows) / 1000
        values[hook][position == 0, 1:] *= 400
        values[hook][random.random(rows) < 0.04, -1] = 300
    values["layer_3"][random.random(rows) < 0.05, 1] = np.nan
    return RowBlock.of(
        values,
        [f"task {seed}"] * rows,
        sample_idx=np.repeat(np.arange(samples), length),
        position=position,
        token_id=token_id,
    )


def written(folder, block: RowBlock, run=None, store_format: str = "safetensors"):
    with ActivationWriter(
        folder,
        WIDTHS,
        model_name="m",
        rows_per_file=ROWS_PER_FILE,
        store_format=store_format,
        run={"special_token_ids": list(SPECIAL)} if run is None else run,
    ) as writer:
        writer.add(block)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("run") / "run", rows_of(0))


FILTERS = [
    {"max_norm_multiple": 10},
    {"exclude_special": True},
    {"exclude_special": [5, 1]},
    {"skip_first": 2},
    {"max_norm_multiple": 3.5, "exclude_special": True, "skip_first": 1},
    {"max_norm_multiple": 1e9, "skip_first": 0},
]
IDS = [str(f) for f in FILTERS]


def masks(folder, hooks, filters) -> dict[str, np.ndarray]:
    """What each filter leaves out, by numpy; the median is the run's."""
    dataset = ActivationDataset(folder, list(hooks))
    keys, found = dataset.keys(), {}
    if "max_norm_multiple" in filters:
        left = np.zeros(len(dataset), bool)
        for hook, values in dataset[:].items():
            rows = values.astype(np.float64)
            norms = np.sqrt((rows * rows).sum(axis=1))
            limit = filters["max_norm_multiple"] * dataset.info.statistics[hook]["median_norm"]
            left |= ~np.isfinite(norms) | (norms > limit)
        found["max_norm_multiple"] = left
    if special := filters.get("exclude_special"):
        found["exclude_special"] = np.isin(keys.token_id, SPECIAL if special is True else special)
    if filters.get("skip_first"):
        found["skip_first"] = keys.position < filters["skip_first"]
    return found | {"together": np.logical_or.reduce(list(found.values()))}


def counts(found) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in found.items()}


def numbers_in(stream) -> list[int]:
    """The numbers of a stream's rows."""
    firsts = [(b if isinstance(b, np.ndarray) else next(iter(b.values())))[:, 0] for b in stream]
    flat = np.concatenate([np.zeros(0, np.float32), *firsts])
    return np.round((flat - 1) * 1000).astype(int).tolist()


@pytest.mark.parametrize("filters", FILTERS, ids=IDS)
@pytest.mark.parametrize("hooks", [("layer_3",), tuple(WIDTHS)])
@pytest.mark.parametrize("seed", [None, 4])
def test_a_stream_gives_what_numpy_keeps(folder, filters, hooks, seed):
    expected = masks(folder, hooks, filters)
    kept = np.flatnonzero(~expected["together"]).tolist()
    dataset = ActivationDataset(folder, list(hooks))
    for batch_size in (1, 10, 1000):
        stream = dataset.batches(batch_size, shuffle_seed=seed, pool_rows=50, **filters)
        batches = list(stream)
        found = numbers_in(batches)
        assert (found if seed is None else sorted(found)) == kept
        assert stream.left_out == counts(expected)
        sizes = [len(batch["layer_3"]) for batch in batches]
        assert set(sizes[:-1]) <= {batch_size}
        for batch in batches:  # the hook points stay side by side
            for values in batch.values():
                np.testing.assert_array_equal(values[:, 0], batch["layer_3"][:, 0])


@pytest.mark.parametrize("filters", FILTERS, ids=IDS)
@pytest.mark.parametrize("hooks", [("layer_3",), tuple(WIDTHS)])
def test_numbers_of_the_rows_that_are_kept_are_numpys(folder, filters, hooks):
    expected = masks(folder, hooks, filters)
    kept = ActivationDataset(folder, list(hooks)).kept_rows(**filters)
    assert kept.numbers.tolist() == np.flatnonzero(~expected["together"]).tolist()
    assert kept.left_out == counts(expected)


def test_without_filters_nothing_is_left_out(folder):
    dataset = ActivationDataset(folder, 3)
    kept = dataset.kept_rows()
    assert kept.numbers.tolist() == list(range(len(dataset)))
    assert kept.left_out == {"together": 0}
    stream = dataset.batches(10)
    list(stream)
    assert stream.left_out == {}
    assert "filters" not in stream.position


def test_two_epochs_are_counted_twice(folder):
    stream = ActivationDataset(folder, 3).batches(9, epochs=2, shuffle_seed=1, skip_first=1)
    found = numbers_in(stream)
    assert len(found) == 2 * 120
    assert stream.left_out == {"skip_first": 40, "together": 40}


@pytest.mark.parametrize("filters", FILTERS, ids=IDS)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_position_goes_on_with_what_would_have_followed(folder, filters, seed, drop_last):
    asked = {"shuffle_seed": seed, "pool_rows": 40, "drop_last": drop_last, "epochs": 2, **filters}
    dataset = ActivationDataset(folder, 3)
    whole = [numbers_in([batch]) for batch in dataset.batches(11, **asked)]
    for count in range(0, len(whole) + 1, 3):
        stream = dataset.batches(11, **asked)
        assert [numbers_in([b]) for b in itertools.islice(stream, count)] == whole[:count]
        position = json.loads(json.dumps(stream.position))
        stream.close()
        after = ActivationDataset(folder, 3).batches(11, **asked, start=position)
        assert [numbers_in([batch]) for batch in after] == whole[count:]


def test_a_position_keeps_its_limit_though_the_run_has_grown(tmp_path):
    block = rows_of(1)
    with ActivationWriter(tmp_path, WIDTHS, model_name="m", rows_per_file=20) as writer:
        writer.add(block[:60])
        asked = {"shuffle_seed": 1, "max_norm_multiple": 2.0}
        stream = ActivationDataset(tmp_path, 3).batches(7, **asked)
        first = numbers_in(itertools.islice(stream, 2))
        position, rest = stream.position, numbers_in(stream)
        grown = {hook: values * 100 for hook, values in block.activations.items()}
        columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
        writer.add(
            RowBlock(**columns | {"activations": grown, "sample_idx": block.sample_idx + 99})
        )
    assert numbers_in(ActivationDataset(tmp_path, 3).batches(7, **asked, start=position)) == rest
    assert len(first) == 14


@pytest.mark.parametrize(
    "other", [{}, {"max_norm_multiple": 9}, {"max_norm_multiple": 10, "skip_first": 1},
              {"exclude_special": True}]
)  # fmt: skip
def test_a_position_of_other_filters_is_refused(folder, other):
    dataset = ActivationDataset(folder, 3)
    position = dataset.batches(5, max_norm_multiple=10).position
    with pytest.raises(StoreError, match="filters"):
        dataset.batches(5, **other, start=position)
    with pytest.raises(StoreError, match="filters"):
        dataset.batches(5, max_norm_multiple=10, start=dataset.batches(5, **other).position)


@pytest.mark.parametrize("limits", [{}, {"layer_3": -1.0}, {"layer_3": math.nan}, {"x": 1}, [], 5])
def test_a_position_with_limits_that_are_none_is_refused(folder, limits):
    dataset = ActivationDataset(folder, 3)
    position = dataset.batches(5, max_norm_multiple=10).position
    position["filters"] = position["filters"] | {"limits": limits}
    with pytest.raises(StoreError, match="filters"):
        dataset.batches(5, max_norm_multiple=10, start=position)


def test_filters_that_leave_nothing_end_at_once(folder):
    dataset = ActivationDataset(folder, 3)
    assert list(dataset.batches(5, skip_first=100)) == []
    assert dataset.kept_rows(skip_first=100).numbers.tolist() == []
    with pytest.raises(StoreError, match="one batch"):
        next(dataset.batches(5, skip_first=100, epochs=None))


@pytest.mark.parametrize(
    "filters",
    [{"max_norm_multiple": 0}, {"max_norm_multiple": math.nan}, {"max_norm_multiple": "10"},
     {"skip_first": -1}, {"skip_first": 1.5}, {"skip_first": True}, {"exclude_special": 5},
     {"exclude_special": ["a"]}, {"exclude_special": "12"}],
)  # fmt: skip
def test_filters_that_are_none_are_refused(folder, filters):
    dataset = ActivationDataset(folder, 3)
    (name,) = filters
    for call in (lambda: dataset.batches(5, **filters), lambda: dataset.kept_rows(**filters)):
        with pytest.raises(StoreError, match=name):
            call()


def test_a_run_that_does_not_record_special_tokens_is_refused_with_the_way_out(tmp_path):
    dataset = ActivationDataset(written(tmp_path / "run", rows_of(0), run={}), 3)
    with pytest.raises(StoreError, match=r"exclude_special=\[151643, 151644\]"):
        dataset.batches(5, exclude_special=True)
    assert dataset.kept_rows(exclude_special=SPECIAL).left_out["exclude_special"] > 0


@pytest.mark.parametrize("name", ["skip_first", "exclude_special"])
def test_rows_without_what_a_filter_needs_are_refused(tmp_path, name):
    block = rows_of(0)
    columns = {key: getattr(block, key) for key in block.__dataclass_fields__}
    columns["position"] = columns["token_id"] = np.full(len(block), -1, np.int32)
    dataset = ActivationDataset(written(tmp_path / "run", RowBlock(**columns)), 3)
    with pytest.raises(StoreError, match=f"{name}.*of every row"):
        list(dataset.batches(5, **{name: True if name == "exclude_special" else 1}))


def test_special_tokens_stay_recorded(tmp_path, folder):
    source = LocalStorage(folder)
    expected = ActivationDataset(folder, 3).kept_rows(exclude_special=True).numbers.tolist()
    convert(source, LocalStorage(tmp_path / "converted"), "pickle")
    merge(LocalStorage(tmp_path / "merged"), [source])
    shutil.copytree(folder, tmp_path / "listed")
    shutil.rmtree(tmp_path / "listed" / "_run")
    for name in ("converted", "merged", "listed"):
        dataset = ActivationDataset(tmp_path / name, 3)
        assert dataset.kept_rows(exclude_special=True).numbers.tolist() == expected
        limits = {"max_norm_multiple": 10}
        assert dataset.kept_rows(**limits).left_out == counts(masks(folder, ("layer_3",), limits))


def test_runs_that_differ_in_their_special_tokens_record_none_when_merged(tmp_path, folder):
    other = written(tmp_path / "other", rows_of(7), run={"special_token_ids": [1]})
    merge(LocalStorage(tmp_path / "merged"), [LocalStorage(folder), LocalStorage(other)])
    with pytest.raises(StoreError, match="does not record"):
        ActivationDataset(tmp_path / "merged", 3).kept_rows(exclude_special=True)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_where_no_row_has_a_median_or_all_are_zero(tmp_path, value):
    rows = np.full((6, 4), value, np.float32)
    block = RowBlock.of({"layer_3": rows}, ["t"] * 6, position=np.arange(6))
    with ActivationWriter(tmp_path, {"layer_3": 4}, model_name="m") as writer:
        writer.add(block)
    kept = ActivationDataset(tmp_path).kept_rows(max_norm_multiple=10)
    assert len(kept.numbers) == (6 if value == 0 else 0)
    stream = ActivationDataset(tmp_path).batches(2, max_norm_multiple=10)
    json.dumps(stream.position, allow_nan=False)
    assert sum(map(len, stream)) == len(kept.numbers)


def test_bfloat16_rows_are_filtered_as_they_are_stored(tmp_path, folder):
    convert(LocalStorage(folder), LocalStorage(tmp_path), "safetensors", "bfloat16")
    expected = masks(tmp_path, ("layer_3",), {"max_norm_multiple": 3})
    for dtype in ("float32", "stored"):
        dataset = ActivationDataset(tmp_path, 3, dtype=dtype)
        assert dataset.kept_rows(max_norm_multiple=3).left_out == counts(expected)
        stream = dataset.batches(10, max_norm_multiple=3)
        assert sum(map(len, stream)) == (~expected["together"]).sum()


def test_damaged_batches_are_left_out_beside_those_of_filters(tmp_path):
    folder = written(tmp_path / "run", rows_of(0), store_format="pickle")
    whole = masks(folder, ("layer_3",), {"skip_first": 1})["together"]
    name = "layer_3_batch_000002.pkl"
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    whole[ROWS_PER_FILE : 2 * ROWS_PER_FILE] = True
    for seed in (None, 1):
        dataset = ActivationDataset(folder, 3, on_bad="skip")
        stream = dataset.batches(8, shuffle_seed=seed, pool_rows=60, skip_first=1)
        assert sorted(numbers_in(stream)) == np.flatnonzero(~whole).tolist()


def test_torchs_loader_takes_filters(folder):
    torch_data = pytest.importorskip("torch.utils.data")
    dataset = ActivationDataset(folder, 3)
    asked = {"max_norm_multiple": 10, "exclude_special": True, "skip_first": 1}
    batches = dataset.torch(9, shuffle_seed=1, **asked)
    expected = dataset.kept_rows(**asked).numbers.tolist()
    for workers in (0, 2):
        loader = torch_data.DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,  # JAX forbids forking
        )
        found = [batch.numpy() for batch in loader]
        assert sorted(numbers_in(found)) == expected
    with pytest.raises(StoreError, match="on_bad='raise'"):
        batches.position(1, 0)
