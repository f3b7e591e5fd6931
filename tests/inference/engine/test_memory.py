"""The estimate against what XLA allocates, and the advice it gives."""

import jax
import jax.numpy as jnp
import pytest

from inference.engine.memory import check_memory, estimate_memory
from inference.engine.plan import PlanSettings
from inference.engine.programs import (
    BatchInput,
    GenerationSettings,
    batch_sharding,
    generate_batch,
    last_slots,
)
from inference.errors import InputError
from qwen_hooks import QwenConfig, create_model_with_hooks
from qwen_hooks.sharding import layout_for, params_bytes

CONFIG = QwenConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=1408,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize("new_tokens", [0, 1, 64])
@pytest.mark.parametrize(("batch_size", "bucket"), [(1, 1024), (16, 128)])
def test_estimate_is_near_what_xla_allocates(new_tokens, batch_size, bucket):
    layout = layout_for(CONFIG, (1, 1), jax.devices()[:1], 10**10, 4)
    model = create_model_with_hooks(CONFIG, [1, 3])
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    settings = GenerationSettings(max_new_tokens=new_tokens)

    def run(params, input_ids, lengths, numbers):
        batch = BatchInput(input_ids, lengths, numbers, last_slots(lengths))
        return generate_batch(model, params, batch, settings=settings, mesh=layout.mesh)

    sharding = batch_sharding(layout.mesh)
    rows = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=sharding)
    ids = jax.ShapeDtypeStruct((batch_size, bucket), jnp.int32, sharding=sharding)
    memory = jax.jit(run).lower(params, ids, rows, rows).compile().memory_analysis()
    estimate = estimate_memory(
        CONFIG,
        layout,
        batch_size=batch_size,
        bucket=bucket,
        max_new_tokens=new_tokens,
        row_slots=1,
        captured_width=2 * CONFIG.hidden_size,
        itemsize=4,
    )
    assert estimate.params == pytest.approx(params_bytes(CONFIG, 4), rel=0.01)
    allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert 0.8 * allocated < estimate.batch < 2.5 * allocated


OPTIONS = {
    "max_new_tokens": 32,
    "row_slots": {256: 1, 4096: 1},
    "captured_width": 2 * CONFIG.hidden_size,
    "itemsize": 4,
}


def check(device_memory, **changes):
    settings = OPTIONS | {"buckets": [256, 4096]}
    plan = PlanSettings(tokens_per_batch=65_536, max_batch_size=64, rows_per_unit=512)
    layout = layout_for(CONFIG, (1, 1), jax.devices()[:1], 10**10, 4)
    check_memory(CONFIG, layout, plan, device_memory=device_memory, **(settings | changes))


def test_advice_is_a_batch_size_that_fits():
    check(64 * 10**9)
    with pytest.raises(InputError, match=r"batch_size=(\d+) would fit") as refused:
        check(10**9)
    advised = int(str(refused.value).split("batch_size=")[1].split()[0])
    assert 1 <= advised < 16
    plan = PlanSettings(tokens_per_batch=65_536, max_batch_size=advised, rows_per_unit=512)
    layout = layout_for(CONFIG, (1, 1), jax.devices()[:1], 10**10, 4)
    check_memory(CONFIG, layout, plan, buckets=[256, 4096], device_memory=10**9, **OPTIONS)


def test_where_nothing_fits_the_message_says_so():
    with pytest.raises(InputError, match="not even one prompt fits"):
        check(30 * 10**6)
