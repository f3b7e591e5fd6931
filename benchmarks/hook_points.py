"""What capturing costs: of the compiled program, and in time.

    python -m benchmarks.hook_points [--shape 0.5B] [--repeats 9] [--against 63c9e24]

`cost` compiles the default program (four layers, the last token, prefill and decoding) and prints
what XLA counts in it; with `--against` also in the programs of another revision of this repository,
and the ratios. XLA counts the body of a loop once. `time` compares, in turns, every hook point of
one block at every token with none, and the last token's rows of all layers with those of one.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.random_model import RandomModel, fetch, start_copies
from benchmarks.shapes import SHAPES
from benchmarks.timing import measure_in_turn
from inference.engine.programs import GenerationSettings, generate_batch
from qwen_hooks.hook_points import default_layers

ROOT = Path(__file__).parents[1]
BATCH, SLOTS, NEW_TOKENS = 8, 256, 32
COUNTED = ("flops", "transcendentals", "bytes accessed")


def counted_costs(shape: str) -> dict[str, dict[str, float]]:
    """What XLA counts in the default programs; uses no more than older revisions have, too."""
    config = SHAPES[shape]
    model = RandomModel.make(config, jnp.dtype("float32"), "xla", scan_layers=False)
    module = model.capturing(default_layers(config.num_hidden_layers))
    arrays, structure = jax.tree.flatten(model.prompts(BATCH, SLOTS))
    costs = {}
    for name, new_tokens in (("prefill", 1), ("decode", NEW_TOKENS)):
        settings = GenerationSettings(max_new_tokens=new_tokens)

        def program(params, arrays, settings=settings):
            batch = jax.tree.unflatten(structure, arrays)
            return generate_batch(module, params, batch, settings=settings, mesh=model.mesh)

        analysis = jax.jit(program).lower(model.params, arrays).compile().cost_analysis()
        assert analysis is not None
        costs[name] = {key: float(analysis[key]) for key in COUNTED}
    return costs


def costs_of_revision(revision: str, shape: str) -> dict[str, dict[str, float]]:
    """The same of a revision of this repository, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = f"{folder}/tree"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True
        )
        try:
            (Path(tree) / "benchmarks/hook_points.py").write_text(
                Path(__file__).read_text(encoding="utf-8"), encoding="utf-8"
            )
            result = subprocess.run(
                [sys.executable, "-m", "benchmarks.hook_points", "--json", "--shape", shape],
                cwd=tree,
                env=os.environ | {"PYTHONPATH": tree},
                check=True,
                capture_output=True,
                text=True,
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def print_costs(shape: str, against: str | None) -> None:
    """The table of counted costs."""
    costs = counted_costs(shape)
    before = costs_of_revision(against, shape) if against else costs
    print(f"\nthe default programs, batch {BATCH}, {SLOTS} prompt tokens, {NEW_TOKENS} new tokens")
    for name, counted in costs.items():
        for key, value in counted.items():
            ratio = f", {value / before[name][key]:.4f} of {against}'s" if against else ""
            print(f"{name:8} {key:16} {value:.4g}{ratio}")


def print_times(shape: str, repeats: int) -> None:
    """The table of what takes how much longer."""
    from qwen_hooks.hook_points import sites  # older revisions, which `cost` runs, have none

    config = SHAPES[shape]
    model = RandomModel.make(config, jnp.dtype("float32"), "xla", scan_layers=False)
    prompts, last = model.prompts(BATCH, SLOTS), config.num_hidden_layers - 1
    middle = f"layers.{last // 2}"
    # The pattern is computed beside the fused attention, and says so; everything else is there.
    of_block = [
        site.name for site in sites(config) if site.layer == last // 2 and not site.point.per_key
    ]
    captured = {
        "nothing": [],
        f"every hook point of {middle}": of_block,
        "layer of the last block": [f"layer_{last}"],
        "all layers": [f"layer_{layer}" for layer in range(last + 1)],
    }
    settings = GenerationSettings(max_new_tokens=1)

    def run(name: str, batch: object) -> None:
        module = model.capturing([]).clone(hook_points=tuple(captured[name]))
        output = generate_batch(module, model.params, batch, settings=settings, mesh=model.mesh)
        fetch(start_copies(output))

    every_token = prompts.replace(  # pyright: ignore[reportAttributeAccessIssue]
        rows=jnp.broadcast_to(jnp.arange(SLOTS, dtype=jnp.int32), (BATCH, SLOTS))
    )
    nothing, block, one, all_layers = captured
    seconds = measure_in_turn(
        {
            "none, every token": functools.partial(run, nothing, every_token),
            "block, every token": functools.partial(run, block, every_token),
            "one, last token": functools.partial(run, one, prompts),
            "all, last token": functools.partial(run, all_layers, prompts),
        },
        repeats,
    )
    print(f"\nprefill, batch {BATCH}, {SLOTS} tokens, median of {repeats} in turns")
    ratio = seconds["block, every token"] / seconds["none, every token"]
    print(f"{len(of_block)} hook points of {middle}, every token: {ratio:.3f} times none")
    ratio = seconds["all, last token"] / seconds["one, last token"]
    print(f"all {last + 1} layers, last token: {ratio:.3f} times the last layer alone")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--against", metavar="REVISION")
    parser.add_argument("--parts", nargs="+", choices=["cost", "time"], default=["cost", "time"])
    parser.add_argument("--json", action="store_true", help="print the counted costs alone")
    options = parser.parse_args(arguments)
    if options.json:
        print(json.dumps(counted_costs(options.shape)))
        return
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax"
        f" {jax.__version__} on {jax.default_backend()}, {options.shape}, float32"
    )
    if "cost" in options.parts:
        print_costs(options.shape, options.against)
    if "time" in options.parts:
        print_times(options.shape, options.repeats)


if __name__ == "__main__":
    main()
