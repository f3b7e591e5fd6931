"""The counted work against XLA's own count of an unrolled model, and against published sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.counted_work import decode_bytes, prefill_flops
from benchmarks.shapes import QWEN_05B, QWEN_7B, QWEN_15B, TINY
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.model import forward, unembed

WIDE = dataclasses.replace(
    TINY,
    vocab_size=32_768,
    hidden_size=448,
    intermediate_size=1216,
    head_dim=32,
    num_hidden_layers=3,
    layer_types=(),
    tie_word_embeddings=False,
)
"""Wide, so that what is not counted (norms, angles, softmax) is little; few layers, so that what
the last one leaves out is much."""


def test_flops_agree_with_xla():
    batch, slots = 2, 128
    model = QwenModelWithActivations(WIDE, ())
    ids = jax.ShapeDtypeStruct((batch, slots), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)

    def prefill(params, ids):
        positions = jnp.broadcast_to(jnp.arange(slots), (batch, slots))
        last = jnp.full((batch, 1), slots - 1)
        output = forward(model, params, ids, positions, rows=last)
        return unembed(model, params, output.residual), output.keys_values

    analysis = jax.jit(prefill).lower(params, ids).compile().cost_analysis()
    counted = prefill_flops(WIDE, batch=batch, slots=slots)
    # So short a prompt is computed in one block, hidden half and all.
    hidden = 4 * WIDE.hidden_size * (WIDE.num_hidden_layers - 1) * batch * slots * (slots - 1) // 2
    assert analysis is not None
    assert analysis["flops"] == pytest.approx(counted.total + hidden, rel=0.01)
    # No part is so small that the tolerance would hide a mistake in it.
    assert min(dataclasses.astuple(counted)) > 0.02 * counted.total


@pytest.mark.parametrize(
    ("config", "count"),
    [(QWEN_05B, 494_032_768), (QWEN_15B, 1_543_714_304), (QWEN_7B, 7_615_616_512)],
)
def test_a_step_reads_every_parameter_once(config, count):
    """The counts are those of the published safetensors files."""
    read = decode_bytes(config, batch=1, slots=0, itemsize=2)
    rows_not_read = 0 if config.tie_word_embeddings else config.vocab_size - 1
    assert read == 2 * (count - rows_not_read * config.hidden_size)


def test_a_step_reads_the_whole_cache():
    def read(slots):
        return decode_bytes(QWEN_05B, batch=4, slots=slots, itemsize=2)

    assert read(100) - read(0) == 2 * 24 * 2 * 4 * 100 * 128
