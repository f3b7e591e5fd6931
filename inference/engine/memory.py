"""Estimates of the device memory of a batch, before anything is compiled.

Counted for each device: parameters, the KV cache (twice while it is filled from the prompt), the
largest set of intermediates that live at one time (MLP or attention projections beside the
residual stream), logits, and captured rows.
"""

import bisect
import dataclasses
from collections.abc import Mapping

from extraction.setting_names import setting
from inference.engine.plan import PlanSettings
from inference.errors import InputError
from qwen_hooks.config import QwenConfig
from qwen_hooks.parameters import params_count
from qwen_hooks.sharding import Layout, params_bytes

USABLE_SHARE = 0.92
"""Share of a device's memory that a program may fill; the rest is the runtime's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Estimated bytes on one device.

    Attributes:
        params: parameters, as the layout shards them.
        batch: everything else that a batch needs.
    """

    params: int
    batch: int


def estimate_memory(
    config: QwenConfig,
    layout: Layout,
    *,
    batch_size: int,
    bucket: int,
    max_new_tokens: int,
    row_slots: int,
    captured_width: int,
    itemsize: int,
) -> MemoryEstimate:
    """Return the estimated memory of a program for one bucket.

    Args:
        config: configuration of the model.
        layout: layout of the model on the mesh.
        batch_size: sequences for one index of the data axis.
        bucket: padded prompt length.
        max_new_tokens: most generated tokens; 0 or 1 need no KV cache.
        row_slots: captured slots of a sequence.
        captured_width: sum of the widths of all captured hook points.
        itemsize: bytes of a number in the dtype of the computation.
    """
    model = layout.mesh.shape["model"]
    over_heads = model if layout.heads else 1
    over_mlp = model if layout.mlp else 1
    over_vocabulary = model if layout.vocabulary else 1

    L, D = config.num_hidden_layers, config.hidden_size
    F, V = config.intermediate_size, config.vocab_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * layout.kv_repeats * config.head_dim
    shards = {"heads": over_heads, "mlp": over_mlp, "vocabulary": over_vocabulary}
    params = itemsize * params_count(layout.config(config), shards)

    tokens = batch_size * bucket
    residual = 3 * tokens * D
    projections = 2 * tokens * (queries + keys) // over_heads
    mlp = 3 * tokens * F // over_mlp  # gate, up and their product
    working = itemsize * (residual + max(projections, mlp))
    slots = bucket + max_new_tokens - 1
    cache = 2 * L * batch_size * slots * keys // over_heads if max_new_tokens > 1 else 0
    logits = 4 * 2 * batch_size * V // over_vocabulary if max_new_tokens else 0
    rows = itemsize * batch_size * (row_slots + max(1, max_new_tokens) - 1) * captured_width
    prefill_cache = 2 * itemsize * cache  # the prompt's own, and the padded buffers
    return MemoryEstimate(params=params, batch=working + prefill_cache + logits + 2 * rows)


def check_memory(
    config: QwenConfig,
    layout: Layout,
    plan: PlanSettings,
    *,
    buckets: list[int],
    max_new_tokens: int,
    row_slots: Mapping[int, int],
    captured_width: int,
    itemsize: int,
    device_memory: int,
) -> None:
    """Check that every bucket's batch fits the devices.

    Raises:
        InputError: a batch does not fit; the message names a batch size that does.
    """
    for bucket in buckets:

        def needed(batch_size: int, bucket: int = bucket) -> int:
            estimate = estimate_memory(
                config,
                layout,
                batch_size=batch_size,
                bucket=bucket,
                max_new_tokens=max_new_tokens,
                row_slots=row_slots[bucket],
                captured_width=captured_width,
                itemsize=itemsize,
            )
            return estimate.params + estimate.batch

        usable = int(USABLE_SHARE * device_memory)
        size = plan.batch_size(bucket)
        if needed(size) <= usable:
            continue
        sizes = range(1, size)
        fitting = bisect.bisect_right(sizes, usable, key=needed)  # the largest; 0: none
        advice = (
            f"{setting('batch_size', fitting)} would fit"
            if fitting
            else f"not even one prompt fits ({params_bytes(config, itemsize) / 1e9:.1f} GB are"
            f" parameters): use a larger model axis in {setting('mesh_shape')}, or shorter prompts"
        )
        raise InputError(
            f"a batch of {size} prompts of up to {bucket} tokens with {max_new_tokens} new tokens"
            f" needs about {needed(size) / 1e9:.1f} GB on each device, which has"
            f" {device_memory / 1e9:.1f} GB; {advice}"
        )
