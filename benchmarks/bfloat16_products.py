"""Matrix products of the 0.5B MLP in bfloat16, as XLA and torch compute them, beside float32.

    python -m benchmarks.bfloat16_products

`XLA` is the plain product. `by float32` asks for a float32 result and rounds it: the same sums,
since XLA accumulates in float32 either way, and what `qwen_hooks.layers.linear` does on CPUs.
`widened` multiplies float32 copies. `XLA_FLAGS` are taken from the environment.
"""

import datetime
import os
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch

from benchmarks.timing import measure_in_turn

WIDTHS = (896, 4864)
ROWS = (8, 1024)
Product = Callable[[jax.Array, jax.Array], jax.Array]


def by_float32(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Rounded once, at the end."""
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def widened(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """By float32 operands."""
    return (x.astype(jnp.float32) @ kernel.astype(jnp.float32)).astype(x.dtype)


PRODUCTS: dict[str, Product] = {"XLA": jnp.dot, "by float32": by_float32, "widened": widened}


def main() -> None:
    """Prints the table."""
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax"
        f" {jax.__version__}, torch {torch.__version__}, XLA_FLAGS={os.environ.get('XLA_FLAGS')}\n"
    )
    for rows in ROWS:
        for dtype in ("float32", "bfloat16"):
            x, kernel = jnp.ones((rows, WIDTHS[0]), dtype), jnp.ones(WIDTHS, dtype)
            works: dict[str, Callable[[], object]] = {}
            for name, product in PRODUCTS.items():
                compiled = jax.jit(product).lower(x, kernel).compile()
                works[name] = lambda f=compiled, x=x, k=kernel: f(x, k).block_until_ready()
            with torch.inference_mode():
                kind = getattr(torch, dtype)
                tokens, weight = (
                    torch.ones(x.shape, dtype=kind),
                    torch.ones(WIDTHS[::-1], dtype=kind),
                )
                works["torch"] = lambda t=tokens, w=weight: torch.nn.functional.linear(t, w)
                seconds = measure_in_turn(works, repeats=15)
            times = ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items())
            print(f"[{rows}, {WIDTHS[0]}] x [{WIDTHS[0]}, {WIDTHS[1]}] {dtype:9} {times}")


if __name__ == "__main__":
    main()
