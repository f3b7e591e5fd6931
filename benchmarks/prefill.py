"""Prefill with captured layers: this package against Hugging Face's torch model with hooks.

    python -m benchmarks.prefill [--shape 0.5B] [--tokens 512] [--repeats 9]

Both load the same random checkpoint in the shape of Qwen2.5-0.5B (or `--shape`), take the same
tokens in float32, capture the last token of the same four layers and predict one token; measured
in turn, in one process, after a warm-up; medians. Torch is measured twice: asked for the last
token's logits only, and as `model(input_ids)` computes them, for all tokens. Also measured: the
peak memory of loading, in a process of its own, and what stopping early saves.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from benchmarks.shapes import SHAPES, write_random_checkpoint
from benchmarks.timing import measure_in_turn
from inference.engine.simple_run import prefill
from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from qwen_hooks.hook_points import default_layers


def torch_prefill(
    folder: Path, layers: Sequence[int], token_ids: np.ndarray
) -> dict[str, Callable[[], object]]:
    """The torch model with a hook on each layer that keeps the last token."""
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    captured: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable:
        def hook(module: object, inputs: object, output: torch.Tensor) -> None:
            captured[layer] = output[:, -1].clone()

        return hook

    for layer in layers:
        model.model.layers[layer].register_forward_hook(keep(layer))
    input_ids = torch.from_numpy(token_ids.astype(np.int64))

    def run(logits_to_keep: int) -> None:
        with torch.inference_mode():
            model(input_ids, use_cache=False, logits_to_keep=logits_to_keep)

    return {"torch, last logits": lambda: run(1), "torch, all logits": lambda: run(0)}


def own_prefill(
    folder: Path, layers: Sequence[int], token_ids: np.ndarray
) -> dict[str, Callable[[], object]]:
    """The simple path's prefill: four layers and a token, and single layers without a token."""
    checkpoint = Checkpoint.open(folder)
    params = load_params(checkpoint, jnp.float32)

    def run(layers: Sequence[int], predict: bool) -> None:
        model = create_model_with_hooks(checkpoint.config, layers)
        length = token_ids.shape[1]
        result = prefill(
            model,
            params,
            token_ids.astype(np.int32),
            np.int32(length),
            np.array([[length - 1]], np.int32),
            predict=predict,
            capacity=None,
        )
        jax.block_until_ready(result)

    last, early = layers[-1], layers[0] - 1
    return {
        "ours": lambda: run(layers, predict=True),
        f"ours, layer {last} only, no token": lambda: run([last], predict=False),
        f"ours, layer {early} only, no token": lambda: run([early], predict=False),
    }


def peak_of_loading(folder: Path, dtype: str) -> tuple[float, float]:
    """MiB of the parameters, and peak MiB of a process that loads them."""
    code = (
        "import sys, jax; from qwen_hooks import Checkpoint, load_params;"
        "params = load_params(Checkpoint.open(sys.argv[1]), sys.argv[2]);"
        "print(sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20);"
        "print(open('/proc/self/status').read())"
    )
    command = [sys.executable, "-c", code, str(folder), dtype]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Not ru_maxrss: a child's begins at its parent's.
    high_water = next(line for line in output.splitlines() if line.startswith("VmHWM:"))
    return float(output.split()[0]), int(high_water.split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args(arguments)
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    machine = f"{platform.machine()}, {torch.get_num_threads()} cores"
    versions = f"jax {jax.__version__} on {jax.default_backend()}, torch {torch.__version__}"
    print(f"{datetime.date.today()}, {machine}, {versions}, {options.shape}")
    config = SHAPES[options.shape]
    layers = default_layers(config.num_hidden_layers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_checkpoint(folder, config, torch.bfloat16)
        for dtype in ("float32", "bfloat16"):
            size, peak = peak_of_loading(folder, dtype)
            above = f"{peak - size:.0f} MiB above"
            print(f"load in {dtype:9} {size:6.0f} MiB of parameters, peak {peak:6.0f} MiB, {above}")
        random = np.random.default_rng(0)
        token_ids = random.integers(config.vocab_size, size=(1, options.tokens))
        works = torch_prefill(folder, layers, token_ids)
        works |= own_prefill(folder, layers, token_ids)
        seconds = measure_in_turn(works, options.repeats)
    for label, median in seconds.items():
        print(f"{label:30} {median:7.3f} s  {options.tokens / median:7.0f} tokens/s")
    ours, last, early = (s for label, s in seconds.items() if label.startswith("ours"))
    print(f"torch, last logits / ours      {seconds['torch, last logits'] / ours:5.2f}")
    print(f"torch, all logits / ours       {seconds['torch, all logits'] / ours:5.2f}")
    print(f"layer {layers[0] - 1} / layer {layers[-1]:<15} {early / last:5.2f}")


if __name__ == "__main__":
    main()
