"""What a device can do at best, to measure a model against: products, copies, and its link.

Data is random: a device that has to flip fewer bits runs faster, on zeros for instance.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.timing import measure_in_turn
from qwen_hooks.layers import matmul_precision


def product_rate(
    tokens: int, inner: int, outer: int, dtype: jnp.dtype, *, least_flops: int, repeats: int
) -> float:
    """FLOP/s of `[tokens, inner] @ [inner, outer]` and back, in the precision of the model.

    Args:
        tokens: rows.
        inner: width of the rows.
        outer: width between the two products.
        dtype: of the factors and of the result.
        least_flops: in one timing, in products one behind the other in one program, so that
            starting a program costs nothing beside them.
        repeats: timings; the median counts.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(keys[0], (tokens, inner), dtype)
    # Scaled so that rows keep their size from product to product.
    up = jax.random.normal(keys[1], (inner, outer), dtype) * inner**-0.5
    down = jax.random.normal(keys[2], (outer, inner), dtype) * outer**-0.5
    pairs = -(-least_flops // (4 * tokens * inner * outer))

    def work() -> None:
        jax.block_until_ready(_there_and_back(rows, up, down, pairs))

    seconds = measure_in_turn({"products": work}, repeats)["products"]
    return pairs * 4 * tokens * inner * outer / seconds


@functools.partial(jax.jit, static_argnames="pairs")
def _there_and_back(
    rows: Float[Array, "B D"], up: Float[Array, "D F"], down: Float[Array, "F D"], pairs: int
) -> Float[Array, "B D"]:
    """Two products in turn, because one alone could not write where it reads and would copy."""
    precision = matmul_precision(rows.dtype)

    def pair(_: int, rows: Array) -> Array:
        return jnp.dot(jnp.dot(rows, up, precision=precision), down, precision=precision)

    return jax.lax.fori_loop(0, pairs, pair, rows)


def copy_rate(size: int, calls: int, repeats: int) -> float:
    """Bytes/s of a copy from the device's memory to itself, read and written ones both counted.

    Args:
        size: bytes of the array.
        calls: copies one behind the other in one timing; all of them are kept until its end.
        repeats: timings; the median counts.
    """
    source = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    copy = jax.jit(jnp.copy)

    def work() -> None:
        jax.block_until_ready([copy(source) for _ in range(calls)])

    return 2 * source.nbytes * calls / measure_in_turn({"copy": work}, repeats)["copy"]


def link_seconds(arrays: int, shape: tuple[int, ...], dtype: jnp.dtype, repeats: int) -> float:
    """Seconds to bring so many arrays of a shape from the device to the host, and nothing else."""

    @jax.jit
    def make(key: Array) -> list[Array]:
        return list(jax.random.normal(key, (arrays, *shape), dtype))

    seconds = []
    for repeat in range(repeats + 1):
        # Fresh ones each time: an array keeps the copy that the host has made of it.
        fresh = jax.block_until_ready(make(jax.random.key(repeat)))
        started = time.perf_counter()
        for array in fresh:
            array.copy_to_host_async()
        for array in fresh:
            np.asarray(array)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
