"""Error of each row on an accelerator, ours and torch's, against torch in float64.

    python -m benchmarks.accelerator_parity [--shape 0.5B] [--lengths 1024 700 512 129 64 17 5 1]
        [--json FILE]

A random checkpoint whose weights are bfloat16 numbers runs on the first device: in torch in
float64, which is the judge, unpadded; in torch in the dtype under test; and in this package, as one
ragged batch padded on the right, with every kind of attention that runs there. The error of a row
is max|a - b| / max|b| over its width. A rounding dtype has no error of 0 to reach, so the last
columns give ours over torch's in the same dtype: about 1 means as exact as torch.
"""

import argparse
import datetime
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers import Qwen2ForCausalLM

from benchmarks.shapes import SHAPES, write_random_checkpoint
from benchmarks.table_report import Row, TableReport
from qwen_hooks import Checkpoint, ModelError, create_model_with_hooks, load_params
from qwen_hooks.attention_backends import ATTENTION, choose_attention
from qwen_hooks.model import Params, QwenModelWithActivations, forward

Rows = list[np.ndarray]
"""Of each prompt: `[L, S, D]` in float32."""

ERRORS = "median", "99 %", "largest"


def torch_rows(folder: Path, prompts: Sequence[np.ndarray], dtype: torch.dtype) -> Rows:
    """Outputs of all blocks, prompt by prompt without padding, by the torch model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()  # pyright: ignore
    outputs: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    rows = []
    for prompt in prompts:
        outputs.clear()
        with torch.inference_mode():
            model.model(torch.tensor(prompt[None], device=device), use_cache=False)
        rows.append(torch.stack(outputs).double().cpu().numpy().astype(np.float32))
    return rows


def own_rows(folder: Path, prompts: Sequence[np.ndarray], dtype: str, attention: str) -> Rows:
    """The same of this package, of one batch that is padded on the right."""
    checkpoint = Checkpoint.open(folder)
    model = create_model_with_hooks(checkpoint.config, None, jnp.dtype(dtype), attention)
    params = load_params(checkpoint, jnp.dtype(dtype))
    input_ids = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    positions = np.full(input_ids.shape, -1, np.int32)
    for sequence, prompt in enumerate(prompts):
        input_ids[sequence, : len(prompt)] = prompt
        positions[sequence, : len(prompt)] = np.arange(len(prompt))
    return _by_prompt(model, params, input_ids, positions, [len(prompt) for prompt in prompts])


def _by_prompt(
    model: QwenModelWithActivations,
    params: Params,
    input_ids: np.ndarray,
    positions: np.ndarray,
    lengths: Sequence[int],
) -> Rows:
    output = jax.jit(lambda p, ids, at: forward(model, p, ids, at).activations)(
        params, input_ids, positions
    )
    # A jitted function returns dictionaries sorted by name: layer_10 before layer_2.
    stacked = np.stack([np.asarray(output[name], np.float32) for name in model.hook_points])
    return [stacked[:, sequence, :length] for sequence, length in enumerate(lengths)]


def row_errors(rows: Rows, judge: Rows) -> np.ndarray:
    """Errors of all rows of all layers and prompts."""
    return np.concatenate(
        [
            (np.abs(a - b).max(axis=-1) / np.abs(b).max(axis=-1)).ravel()
            for a, b in zip(rows, judge, strict=True)
        ]
    )


def summary(errors: np.ndarray) -> Row:
    """Median, 99th percentile and maximum."""
    return dict(zip(ERRORS, map(float, np.quantile(errors, [0.5, 0.99, 1.0])), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[1024, 700, 512, 129, 64, 17, 5, 1]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers there")
    options = parser.parse_args(arguments)
    device = jax.devices()[0]
    about = {
        "date": str(datetime.date.today()),
        "device": device.device_kind,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shape": options.shape,
    }
    for name, value in about.items():
        print(f"{name:13}{value}")
    torch.backends.cuda.matmul.allow_tf32 = False
    config = SHAPES[options.shape]
    random = np.random.default_rng(0)
    prompts = [random.integers(config.vocab_size, size=n, dtype=np.int32) for n in options.lengths]
    report = TableReport(about, options.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_checkpoint(folder, config, torch.bfloat16)
        judge = torch_rows(folder, prompts, torch.float64)
        for dtype in ("float32", "bfloat16"):
            report.start(f"errors of rows in {dtype} against float64")
            theirs = summary(row_errors(torch_rows(folder, prompts, getattr(torch, dtype)), judge))
            report.measure("parity", {"dtype": dtype, "of": "torch"}, lambda t=theirs: t)
            gc.collect()
            for attention in ATTENTION:
                try:
                    choose_attention(
                        attention, device.platform, jnp.dtype(dtype), config,
                        compute_capability=getattr(device, "compute_capability", None),
                    )  # fmt: skip
                except ModelError:
                    continue
                rows = own_rows(folder, prompts, dtype, attention)
                ours = summary(row_errors(rows, judge))
                ratios = {f"/torch {name}": ours[name] / theirs[name] for name in ERRORS}
                report.measure(
                    "parity", {"dtype": dtype, "of": f"ours {attention}"}, lambda r=ours | ratios: r
                )


if __name__ == "__main__":
    main()
