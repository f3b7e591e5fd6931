"""The writer for loops of one's own: hook points of different widths, in a folder or a bucket."""

import numpy as np
import pytest

from extraction import ActivationDataset, ActivationWriter, ExistingRunError, RowBlock, verify
from extraction.errors import StoreError

WIDTHS = {"layer_3": 4, "layers.3.mlp.post": 7, "norm": 2}


def rows_of(first: int, count: int) -> RowBlock:
    """Rows whose values tell their number, hook point and place."""
    numbers = np.arange(first, first + count)
    return RowBlock.of(
        {
            hook: (numbers[:, None] * 100 + at * 10 + np.arange(width)).astype(np.float32)
            for at, (hook, width) in enumerate(WIDTHS.items())
        },
        [f"task {n // 3}" for n in numbers],
        position=numbers % 3,
        token_id=numbers,
    )


def write(address, **settings):
    with ActivationWriter(address, WIDTHS, rows_per_file=4, **settings) as writer:
        for first, count in ((0, 3), (3, 6), (9, 1)):
            writer.add(rows_of(first, count))
    return writer


@pytest.mark.parametrize("store_format", ["pickle", "safetensors"])
@pytest.mark.parametrize("place", ["folder", "gs", "folder and gs", "s3", "folder and s3"])
def test_every_row_comes_back_with_its_own_width(
    store_format, place, tmp_path, request, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    *folder, scheme = place.split(" and ")
    if scheme != "folder":
        request.getfixturevalue("environment" if scheme == "gs" else "moto_s3")
    bucket = None if scheme == "folder" else f"{scheme}://bucket/run"
    address, upload_to = (tmp_path / "run", bucket) if folder else (bucket, None)
    address = address or tmp_path / "run"
    writer = write(address, store_format=store_format, upload_to=upload_to, model_name="m")
    assert writer.rows_written == 10
    assert len(writer.batches) == 3
    run = upload_to or address
    assert verify(run, 3).verdict == "good"
    dataset = ActivationDataset(run, list(WIDTHS))
    found = dataset[:]
    for hook, values in rows_of(0, 10).activations.items():
        np.testing.assert_array_equal(found[hook], values)
    assert dataset.keys().token_id.tolist() == list(range(10))
    assert dataset.info.complete
    assert dataset.info.sequences == 4  # one of them begins in a file and ends in the next
    with pytest.raises(ExistingRunError):
        write(run)


def test_rows_of_another_width_or_hook_point_are_refused(tmp_path):
    writer = ActivationWriter(tmp_path / "run", WIDTHS)
    block = rows_of(0, 2)
    with pytest.raises(StoreError, match=r"norm has shape \[2, 3\], not \[rows, 2\]"):
        writer.add(_with(block, norm=np.zeros((2, 3), np.float32)))
    with pytest.raises(StoreError, match="this run has"):
        writer.add(_with(block, other=np.zeros((2, 3), np.float32)))
    assert not (tmp_path / "run").exists()


def _with(block: RowBlock, **activations: np.ndarray) -> RowBlock:
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    return RowBlock(**columns | {"activations": {**block.activations, **activations}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"widths": {}}, "name a hook point"),
        ({"widths": {"../x": 3}}, "x"),
        ({"rows_per_file": 0}, "rows_per_file must be at least 1"),
        ({"store_format": "hdf5"}, "there is no format .hdf5."),
        ({"store_dtype": "bfloat16"}, "pickle files cannot store bfloat16"),
        ({"upload_to": "bucket/x"}, "must look like gs://bucket/prefix"),
        ({"run": {"x": {1, 2}}}, "JSON"),
    ],
)
def test_settings_that_are_none(tmp_path, settings, words):
    with pytest.raises(StoreError, match=words):
        ActivationWriter(tmp_path / "run", **{"widths": WIDTHS} | settings)
    assert not (tmp_path / "run").exists()
