"""What the processes of one training tell each other; with one process nothing is sent.

Every function is called by all processes at the same point.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from extraction.setting_names import setting
from inference.errors import InputError
from qwen_hooks.sharding import make_mesh


def mesh_of(shape: tuple[int, int] | None, batch_size: int, latents: int) -> Any:
    """Return a mesh with the axes `data` and `latent`, or None for one device.

    Args:
        shape: length of the axes; None: all devices along `latent`, but one CPU device alone, where
            the sparse path is faster.
        batch_size: rows of a step.
        latents: latents of an autoencoder.

    Raises:
        InputError: the shape does not fit the devices, the rows or the latents.
    """
    devices = jax.devices()
    if shape is None:
        if jax.process_count() == 1 and devices[0].platform == "cpu":
            return None
        shape = (1, len(devices))
    if shape[0] * shape[1] != len(devices):
        raise InputError(
            f"{setting('mesh_shape', f'{shape[0]},{shape[1]}')} is for {shape[0] * shape[1]}"
            f" devices; there are {len(devices)}"
        )
    if len(devices) == 1:
        return None
    if batch_size % len(devices):
        raise InputError(
            f"{setting('batch_size', batch_size)} cannot be split over {len(devices)} devices"
        )
    if latents % shape[1]:
        raise InputError(f"{latents} latents cannot be split over {shape[1]} devices")
    mesh = make_mesh(shape, devices)
    return jax.sharding.Mesh(mesh.devices, ("data", "latent"))


def whole(tree: Any) -> Any:
    """Return a tree of arrays, each of them whole and in this process's memory, as numpy arrays."""

    def of(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(of, tree)


def rows_of_all(rows: np.ndarray) -> np.ndarray:
    """Return the rows of all processes, `[B, width]`."""
    if jax.process_count() == 1:
        return rows
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def any_of(told: bool) -> bool:
    """Return whether any process says so."""
    if jax.process_count() == 1:
        return told
    return bool(np.any(multihost_utils.process_allgather(np.array(told))))


def sum_of(values: np.ndarray) -> np.ndarray:
    """Return the sum over all processes of an array."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.process_allgather(values), np.float64).sum(0)


def told_by_all(document: Any) -> list[Any]:
    """Return what each process says, JSON, in the order of their numbers."""
    if jax.process_count() == 1:
        return [document]
    text = json.dumps(document).encode()
    lengths = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.zeros(int(np.max(lengths)), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(bytes(row[:length])) for row, length in zip(every, lengths.ravel(), strict=True)
    ]
