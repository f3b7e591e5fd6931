"""SAELens' own reader of cached activations gives exactly the rows that were written.

It needs an environment of its own, with sae-lens, pytest, ml_dtypes and google-crc32c:

    python -m pytest --noconftest tests/extraction/exports/test_sae_lens.py
"""

import contextlib

import numpy as np
import pytest

from extraction.exports import export
from tests.extraction.exports.ragged_runs import (
    ROWS,
    WIDTHS,
    WITH_ROWS,
    known_row,
    write_ragged_run,
)

CONTEXT, CONTEXTS = 2, ROWS // 2
ORDER = [(sample, position) for sample in WITH_ROWS for position in sample.positions]
COLUMNS = {
    "layer_6": "blocks.6.hook_resid_post",
    "layers.6.mlp.neurons": "blocks.6.mlp.hook_post",
}

pytestmark = pytest.mark.filterwarnings("ignore")  # SAELens' own


@pytest.fixture
def store_of():
    """Makes SAELens' store of a folder and a column."""
    reason = "sae_lens is not installed; it needs an environment of its own, see this file"
    store = pytest.importorskip("sae_lens.training.activations_store", reason=reason)
    torch = pytest.importorskip("torch")

    def make(folder, hook_name, width, prompts=1):
        return store.ActivationsStore(
            model=None,
            dataset=None,
            streaming=False,
            hook_name=hook_name,
            hook_head_index=None,
            context_size=CONTEXT,
            d_in=width,
            n_batches_in_buffer=CONTEXTS,
            total_training_tokens=CONTEXT * CONTEXTS,
            store_batch_size_prompts=prompts,
            train_batch_size_tokens=CONTEXT * prompts,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
            cached_activations_path=str(folder),
            activations_mixing_fraction=0.0,
        )

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("hook", COLUMNS)
def test_sae_lens_reads_every_row(tmp_path, store_of, hook, prompts, dtype):
    write_ragged_run(tmp_path / "run", "safetensors", dtype)
    export(tmp_path / "run", tmp_path / "out", "huggingface", context_size=CONTEXT)
    store = store_of(tmp_path / "out", COLUMNS[hook], WIDTHS[hook], prompts)
    parts = []
    with contextlib.suppress(StopIteration):  # the end of an epoch
        while True:
            parts.append(store.get_raw_llm_batch(raise_on_epoch_end=True))
    order = ORDER[: CONTEXT * CONTEXTS]
    expected = np.stack([known_row(*row, hook, dtype) for row in order])
    rows = np.concatenate([acts.numpy() for acts, _ in parts])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    tokens = np.concatenate([ids.numpy() for _, ids in parts])
    assert tokens.tolist() == [sample.tokens[position] for sample, position in order]
    # What its trainer takes, without mixing.
    batches = np.concatenate([store.next_batch().numpy() for _ in range(CONTEXTS // prompts)])
    np.testing.assert_array_equal(batches, expected)


def test_sae_lens_refuses_another_shape(tmp_path, store_of):
    """So the test above is about the shapes, too."""
    write_ragged_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "huggingface", context_size=CONTEXT + 1)
    with pytest.raises(ValueError, match="does not match context_size"):
        store_of(tmp_path / "out", COLUMNS["layer_6"], WIDTHS["layer_6"])
