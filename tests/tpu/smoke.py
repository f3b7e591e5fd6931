"""Does this accelerator give the CPU's rows? For anyone who has one: `make tpu-smoke`.

    python -m tests.tpu.smoke [--platform tpu]

A tiny random model generates for a ragged batch on every device of the platform, with each kind of
attention that runs there, unrolled and scanned, and its rows are compared with those of the plain
program on the CPU, in float32. Exit status 1 if any differs by more than its dtype explains.

When this has passed on a TPU with `splash`, `TPU_DEFAULT` in `qwen_hooks/attention_backends.py` may
become `splash`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.make_demo import make_checkpoint
from inference.engine.programs import (
    BatchInput,
    GenerationSettings,
    batch_sharding,
    generate_batch,
    last_slots,
)
from qwen_hooks import Checkpoint, ModelError, create_model_with_hooks, load_params
from qwen_hooks.attention_backends import ATTENTION, choose_attention
from qwen_hooks.sharding import layout_for

BUCKET = 160
SETTINGS = GenerationSettings(max_new_tokens=6)
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest max|a - b| / max|b| of a row."""


def run(
    checkpoint: Checkpoint, devices: Sequence[Any], dtype: str, attention: str, scan_layers: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[layers, steps, B, D]` in float32, and tokens `[B, steps]`."""
    layout = layout_for(checkpoint.config, (len(devices), 1), devices, 1 << 40, 4)
    model = create_model_with_hooks(
        checkpoint.config, None, dtype, attention, scan_layers=scan_layers
    )
    random = np.random.default_rng(0)
    lengths = random.integers(1, BUCKET + 1, size=8).astype(np.int32)
    ids = random.integers(checkpoint.config.vocab_size, size=(8, BUCKET)).astype(np.int32)
    sharding = batch_sharding(layout.mesh)
    batch = BatchInput(
        *(
            jax.device_put(x, sharding)
            for x in (ids, lengths, np.arange(8, dtype=np.int32), last_slots(lengths))
        )
    )
    params = load_params(checkpoint, dtype, layout, scan_layers=scan_layers)
    output = generate_batch(model, params, batch, settings=SETTINGS, mesh=layout.mesh)
    rows = [
        np.concatenate([np.asarray(first).swapaxes(0, 1), output.generated_rows[hook]])
        for hook, first in output.prompt_rows.items()
    ]
    return np.stack(rows).astype(np.float32), np.asarray(output.tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--platform", default=jax.default_backend())
    options = parser.parse_args(arguments)
    devices = jax.devices(options.platform)
    devices = devices[: max(n for n in (1, 2, 4, 8) if n <= len(devices))]
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    failed = False
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name))
        checkpoint = Checkpoint.open(name)
        wanted_rows, wanted_tokens = run(
            checkpoint, jax.devices("cpu")[:1], "float32", "xla", scan_layers=False
        )
        for dtype, tolerance in TOLERANCE.items():
            for attention in ATTENTION:
                try:
                    choose_attention(
                        attention, options.platform, jnp.dtype(dtype), checkpoint.config,
                        compute_capability=getattr(devices[0], "compute_capability", None),
                    )  # fmt: skip
                except ModelError as error:
                    print(f"{dtype:9}{attention:8} not here: {error}")
                    continue
                for scan in (False, True):
                    rows, tokens = run(checkpoint, devices, dtype, attention, scan)
                    # Half precision may choose another token, and goes its own way from there.
                    steps = len(rows) if dtype == "float32" else 1
                    difference = np.abs(rows[:steps] - wanted_rows[:steps]).max(axis=-1)
                    error = float((difference / np.abs(wanted_rows[:steps]).max(axis=-1)).max())
                    same = steps == 1 or np.array_equal(tokens, wanted_tokens)
                    good = error <= tolerance and same
                    failed |= not good
                    print(f"{dtype:9}{attention:8} {'scanned' if scan else 'unrolled':9}"
                          f" largest error {error:.1e} (allowed {tolerance:.0e}),"
                          f" tokens {'equal' if same else 'DIFFER'}:"
                          f" {'passed' if good else 'FAILED'}")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
