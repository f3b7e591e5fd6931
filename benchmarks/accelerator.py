"""Prefill, decoding and capture on whatever accelerator there is, against what it can do at best.

    python -m benchmarks.accelerator [--shapes 0.5B 7B] [--sequence_lengths 512 2048 4096]
        [--tokens_per_step 4096] [--batch_sizes 1 8 32] [--peak_tflops 989] [--json FILE]

On the first device, with random parameters made on it. First its limits, which `device_limits`
measures: matrix products of large squares, and a copy. Then three tables for each shape:

    prefill   `generate_batch` with one new token. `MFU` is the FLOP/s that `counted_work` counts,
              over the fastest product of this run, squares and the case's own tokens x D x F;
              `of own` is over the latter, `of peak` over --peak_tflops. `capture` is what four
              layers' last token, brought to the host, cost: time with, over time without.
    decode    `generate_batch` of few and of many new tokens; the difference is steps alone, in time
              and in bytes read. `of copy` is over the copy, where reads and writes count.
    capture   `forward` with all layers' all tokens brought to the host, each batch while the next
              computes; `link` is the plain copy of the same bytes.

A case that the device's memory does not hold says so in its row. Without an accelerator it runs on
CPU, smaller by default, and the targets are not looked at.
"""

import argparse
import datetime
import functools
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.counted_work import decode_bytes, prefill_flops
from benchmarks.device_limits import copy_rate, link_seconds, product_rate
from benchmarks.random_model import RandomModel, fetch, start_copies
from benchmarks.shapes import SHAPES
from benchmarks.table_report import Row, TableReport
from benchmarks.timing import measure_in_turn
from qwen_hooks import ModelError
from qwen_hooks.attention_backends import ATTENTION, choose_attention
from qwen_hooks.hook_points import default_layers

ON_ACCELERATORS: dict[str, Any] = {
    "shapes": ["0.5B", "7B"],
    "sequence_lengths": [512, 2048, 4096],
    "tokens_per_step": 4096,
    "batch_sizes": [1, 8, 32],
    "new_tokens": 64,
    "repeats": 5,
    "calls": 8,
    "product_sizes": [4096, 8192, 16384],
    "copy_mib": 512,
    "dtype": "bfloat16",
}
ON_CPU: dict[str, Any] = {
    "shapes": ["0.5B"],
    "sequence_lengths": [512],
    "tokens_per_step": 512,
    "batch_sizes": [1],
    "new_tokens": 16,
    "repeats": 3,
    "calls": 2,
    "product_sizes": [1024, 2048],
    "copy_mib": 256,
    "dtype": "float32",
}
"""Defaults of the flags."""

NO_ACCELERATOR = "no accelerator here: these are CPU numbers, the targets do not apply"

TARGET_TOKENS, TARGET_CAPTURE = 4096, 1.03
TARGET_MFU = {"0.5B": 0.45, "7B": 0.60}
"""Of prefill in bfloat16 at so many tokens a step: what capture may cost, and the least MFU."""

FEW_NEW_TOKENS = 2
"""The fewest for which there is a decode step."""


def measure_prefill(
    model: RandomModel, batch: int, slots: int, square_product: float, options: argparse.Namespace
) -> Row:
    """A row of the prefill table; `square_product` in FLOP/s."""
    config = model.config
    prompts = model.prompts(batch, slots)
    run = functools.partial(model.generate, prompts, new_tokens=1, calls=options.calls)
    layers = default_layers(config.num_hidden_layers)
    works = {"without": lambda: run(layers=()), "with": lambda: run(layers=layers)}
    seconds = measure_in_turn(works, options.repeats)
    own_product = product_rate(
        batch * slots,
        config.hidden_size,
        config.intermediate_size,
        model.dtype,
        least_flops=_flops_of_largest_square(options),
        repeats=options.repeats,
    )
    step = seconds["without"] / options.calls
    rate = prefill_flops(config, batch=batch, slots=slots).total / step
    return {
        "tokens/s": batch * slots / step,
        "ms/step": 1e3 * step,
        "TFLOP/s": rate / 1e12,
        "own product": own_product / 1e12,
        "MFU": rate / max(square_product, own_product),
        "of own": rate / own_product,
        "of peak": rate / 1e12 / options.peak_tflops if options.peak_tflops else None,
        "capture": seconds["with"] / seconds["without"],
    }


def measure_decode(
    model: RandomModel, batch: int, slots: int, copy: float, options: argparse.Namespace
) -> Row:
    """A row of the decode table; `copy` in bytes/s."""
    prompts = model.prompts(batch, slots)
    few, many = FEW_NEW_TOKENS, options.new_tokens
    works = {
        tokens: functools.partial(model.generate, prompts, (), new_tokens=tokens, calls=1)
        for tokens in (few, many)
    }
    seconds = measure_in_turn(works, options.repeats)
    between = seconds[many] - seconds[few]
    if between <= 0:
        return {"failure": "too short to measure: raise --new_tokens or --repeats"}

    def bytes_read(tokens: int) -> int:
        """In all steps, of which the first token needs none; the cache has room for all."""
        room, itemsize = slots + tokens - 1, model.dtype.itemsize
        return (tokens - 1) * decode_bytes(model.config, batch=batch, slots=room, itemsize=itemsize)

    read = bytes_read(many) - bytes_read(few)
    steps = many - few
    return {
        "tokens/s": batch * steps / between,
        "ms/step": 1e3 * between / steps,
        "MB/step": read / steps / 1e6,
        "GB/s": read / between / 1e9,
        "of copy": read / between / copy if copy else None,
    }


def measure_capture(model: RandomModel, batch: int, slots: int, options: argparse.Namespace) -> Row:
    """A row of the capture table.

    The last batch's copy has no computing to hide behind; few --calls make it weigh more than it
    does in a long run.
    """
    ids = model.prompts(batch, slots).input_ids
    layers = range(model.config.num_hidden_layers)

    def with_capture() -> None:
        on_the_way = []
        for _ in range(options.calls):
            newest = start_copies(model.all_tokens(ids, layers))
            fetch(on_the_way)
            on_the_way = newest
        fetch(on_the_way)

    works = {
        "without": lambda: jax.block_until_ready(
            [model.all_tokens(ids, ()) for _ in range(options.calls)]
        ),
        "with": with_capture,
    }
    seconds = measure_in_turn(works, options.repeats)
    without, captured = (seconds[name] / options.calls for name in ("without", "with"))
    shape = (batch, slots, model.config.hidden_size)
    size = len(layers) * math.prod(shape) * model.dtype.itemsize
    # A CPU device's arrays are in the host's memory as they are.
    has_link = jax.devices()[0].platform != "cpu"
    link = link_seconds(len(layers), shape, model.dtype, options.repeats) if has_link else 0.0
    return {
        "MB/step": size / 1e6,
        "ms without": 1e3 * without,
        "ms link": 1e3 * link if has_link else None,
        "ms with": 1e3 * captured,
        "GB/s": size / captured / 1e9,
        "GB/s link": size / link / 1e9 if has_link else None,
        "capture": captured / without,
        "bound by": "link" if link > without else "computing",
    }


def measure_shape(
    name: str,
    attention: str,
    limits: dict[str, float],
    report: TableReport,
    options: argparse.Namespace,
) -> None:
    """The tables of a shape."""
    made: list[RandomModel] = []

    def make() -> Row:
        dtype, scan = jnp.dtype(options.dtype), options.scan_layers
        made.append(RandomModel.make(SHAPES[name], dtype, attention, scan_layers=scan))
        leaves = jax.tree.leaves(made[0].params)
        return {
            "millions": sum(leaf.size for leaf in leaves) / 1e6,
            "MB": sum(leaf.nbytes for leaf in leaves) / 1e6,
            "attention": attention,
        }

    blocks = "scanned" if options.scan_layers else "unrolled"
    report.start(f"{name}, blocks {blocks}, parameters in {options.dtype}")
    report.measure("parameters", {"shape": name}, make)
    if not made:
        return
    lengths = options.sequence_lengths
    a_step = [(max(1, options.tokens_per_step // slots), slots) for slots in lengths]
    any_batch = [(batch, slots) for slots in lengths for batch in options.batch_sizes]
    prefill = functools.partial(measure_prefill, square_product=limits["product"])
    decode = functools.partial(measure_decode, copy=limits["copy"])
    for table, title, cases, measure in (
        ("prefill", "prefill", a_step, prefill),
        ("decode", f"decode of {options.new_tokens} tokens", any_batch, decode),
        ("capture", "capture of all layers and tokens, to the host", a_step, measure_capture),
    ):
        report.start(f"{name}, {title}")
        for batch, slots in cases:
            case: Row = {"shape": name, "prompt": slots, "batch": batch}
            work = functools.partial(measure, made[0], batch, slots, options=options)
            report.measure(table, case, work)


def measure_limits(report: TableReport, options: argparse.Namespace) -> dict[str, float]:
    """The best `product` of two squares, in FLOP/s, and a `copy`, in bytes/s; 0: did not fit."""
    flops, dtype = _flops_of_largest_square(options), jnp.dtype(options.dtype)
    limits = {"product": 0.0, "copy": 0.0}
    report.start(f"limits of the device, measured in this run, products in {dtype}")

    def product(size: int) -> Row:
        rate = product_rate(size, size, size, dtype, least_flops=flops, repeats=options.repeats)
        limits["product"] = max(limits["product"], rate)
        return {"TFLOP/s": rate / 1e12}

    def copy() -> Row:
        limits["copy"] = copy_rate(options.copy_mib << 20, options.calls, options.repeats)
        return {"GB/s": limits["copy"] / 1e9}

    for size in options.product_sizes:
        report.measure("product", {"square": size}, functools.partial(product, size))
    report.measure("copy", {"copied MiB": options.copy_mib}, copy)
    return limits


def _flops_of_largest_square(options: argparse.Namespace) -> int:
    """Of one product there and one back: what a timing of products computes at least."""
    return 4 * max(options.product_sizes) ** 3


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A line for each target and each case that it is meant for, by its tokens a step."""
    lines = []
    for row in rows:
        if row["table"] not in ("prefill", "capture") or "failure" in row:
            continue
        if row["batch"] * row["prompt"] != TARGET_TOKENS:
            continue
        case = f"{row['shape']}, {row['batch']} prompts of {row['prompt']} tokens"
        if "MFU" in row and row["shape"] in TARGET_MFU:
            mfu, least = row["MFU"], TARGET_MFU[row["shape"]]
            word = "met" if mfu >= least else "missed"
            lines.append(f"{case}: MFU {mfu:.3f}, at least {least}: {word}")
        capture = row["capture"]
        what = "four layers, last token" if row["table"] == "prefill" else "all layers and tokens"
        word = "met" if capture <= TARGET_CAPTURE else "missed"
        word += ", bound by the link" if row.get("bound by") == "link" else ""
        lines.append(f"{case}: capture of {what} {capture:.3f}, at most {TARGET_CAPTURE}: {word}")
    return lines


def read_options(arguments: Sequence[str] | None, on_cpu: bool) -> argparse.Namespace:
    """The flags; their defaults are the device's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--sequence_lengths", nargs="+", type=int, help="tokens of a prompt")
    parser.add_argument("--tokens_per_step", type=int, help="of a batch of prompts")
    parser.add_argument("--batch_sizes", nargs="+", type=int, help="of decoding")
    parser.add_argument("--new_tokens", type=int, help="of decoding")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", choices=["auto", *ATTENTION], default="auto")
    parser.add_argument("--scan_layers", action="store_true", help="as the command's flag")
    parser.add_argument("--repeats", type=int, help="timings of each work; the median counts")
    parser.add_argument("--calls", type=int, help="batches one behind the other in a timing")
    parser.add_argument("--product_sizes", nargs="+", type=int, help="rows of the squares")
    parser.add_argument("--copy_mib", type=int, help="size of the array that is copied")
    parser.add_argument("--peak_tflops", type=float, help="what the device's maker states")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers there")
    parser.set_defaults(**(ON_CPU if on_cpu else ON_ACCELERATORS))
    options = parser.parse_args(arguments)
    if options.new_tokens <= FEW_NEW_TOKENS:
        parser.error(f"--new_tokens must be more than {FEW_NEW_TOKENS}")
    device = jax.devices()[0]
    try:
        options.attention = {
            name: choose_attention(
                options.attention,
                device.platform,
                options.dtype,
                SHAPES[name],
                compute_capability=getattr(device, "compute_capability", None),
            )
            for name in options.shapes
        }
    except ModelError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    options = read_options(arguments, on_cpu)
    words = sys.argv[1:] if arguments is None else arguments
    about = {
        "date": str(datetime.date.today()),
        "device": device.device_kind,
        "platform": device.platform,
        "host": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "command": f"python -m benchmarks.accelerator {shlex.join(words)}".strip(),
    }
    for name, value in about.items():
        print(f"{name:9}{value}")
    if on_cpu:
        print(NO_ACCELERATOR)
    report = TableReport(about | {"targets_apply": not on_cpu}, options.json)
    limits = measure_limits(report, options)
    for name in options.shapes:
        measure_shape(name, options.attention[name], limits, report, options)
    if not on_cpu and options.dtype == "bfloat16":
        print(f"\ntargets, of cases of {TARGET_TOKENS} tokens a step in bfloat16")
        print("\n".join(verdicts(report.rows)) or "no such case")


if __name__ == "__main__":
    main()
