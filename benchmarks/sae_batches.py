"""The batches that two trainers are given alike; numpy alone, for either environment."""

from collections.abc import Iterator

import numpy as np


def batches(rows: np.ndarray, batch_size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `[batch_size, width]` float32, epoch after epoch in random orders.

    Args:
        rows: `[R, width]`, possibly mapped from a file.
        batch_size: rows of a batch; what remains of an epoch is left out.
        steps: number of batches.
        seed: of the orders.
    """
    random = np.random.default_rng(seed)
    order = np.zeros(0, np.int64)
    for _ in range(steps):
        if len(order) < batch_size:
            order = random.permutation(len(rows))
        taken, order = order[:batch_size], order[batch_size:]
        yield rows[np.sort(taken)]
