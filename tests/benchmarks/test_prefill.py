"""The benchmark's own claims that do not depend on the machine's speed."""

import dataclasses

import jax
import numpy as np
import torch

from benchmarks.prefill import peak_of_loading
from benchmarks.shapes import QWEN_05B, write_random_checkpoint
from qwen_hooks import Checkpoint, load_params
from tests.oracle import load_torch


def test_random_checkpoints_load_in_both(tmp_path):
    small = dataclasses.replace(
        QWEN_05B, num_hidden_layers=2, vocab_size=100, layer_types=(), hidden_size=56, head_dim=4
    )
    write_random_checkpoint(tmp_path, small, torch.bfloat16)
    params = load_params(Checkpoint.open(tmp_path))["params"]
    theirs = load_torch(tmp_path).model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(params["embed_tokens"]["weight"], theirs)


def test_loading_peaks_at_most_1_gb_above_the_parameters(tmp_path):
    """With the embedding of the 0.5B model, its largest tensor, and four of its blocks."""
    shape = dataclasses.replace(QWEN_05B, num_hidden_layers=4, layer_types=())
    write_random_checkpoint(tmp_path, shape, torch.bfloat16)
    count = sum(x.size for x in jax.tree.leaves(load_params(Checkpoint.open(tmp_path))))
    size, peak = peak_of_loading(tmp_path, "float32")
    assert size == count * 4 / 2**20
    assert peak - size < 1000
