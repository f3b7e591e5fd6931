"""Parameters before the first step."""

import numpy as np

from sae.architectures import ARCHITECTURES
from sae.training.settings import SaeSettings

MEDIAN_ROUNDS, MEDIAN_TOLERANCE = 100, 1e-5


def initial_params(
    settings: SaeSettings, d_in: int, d_out: int, first_rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the parameters that a training begins with, float32.

    The decoder's rows have random directions; the encoder's are the same, where both have the same
    width.

    Args:
        settings: resolved settings.
        d_in: width of the rows.
        d_out: width of the targets.
        first_rows: `[B, d_out]`, targets of the first batch, scaled.
    """
    random = np.random.default_rng(settings.random_seed)
    latents = settings.latents

    def directions(width: int) -> np.ndarray:
        rows = random.standard_normal((latents, width), dtype=np.float32)
        rows *= np.float32(settings.decoder_init_norm) / np.linalg.norm(rows, axis=1)[:, None]
        return rows

    decoder = directions(d_out)
    params = {
        "encoder": decoder.copy() if d_in == d_out else directions(d_in),
        "decoder": decoder,
        "b_enc": np.zeros(latents, np.float32),
        "b_dec": _center(first_rows, settings.b_dec_init).astype(np.float32),
    }
    for name, value in ARCHITECTURES[settings.architecture].parameters(settings).items():
        params[name] = np.full(latents, value, np.float32)
    return params


def param_shapes(settings: SaeSettings, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter."""
    latents = settings.latents
    further = ARCHITECTURES[settings.architecture].parameters(settings)
    return {
        "encoder": (latents, d_in),
        "decoder": (latents, d_out),
        "b_enc": (latents,),
        "b_dec": (d_out,),
        **{name: (latents,) for name in further},
    }


def _center(rows: np.ndarray, how: str | None) -> np.ndarray:
    if how == "mean":
        return rows.mean(0, dtype=np.float64)
    if how == "geometric_median":
        return geometric_median(rows)
    return np.zeros(rows.shape[1])


def geometric_median(rows: np.ndarray) -> np.ndarray:
    """Return `[D]` float64: the point with the least mean distance from the rows.

    Weiszfeld's algorithm, until a round moves it by less than 1e-5 of its norm, at most 100 rounds.
    """
    rows = rows.astype(np.float64)
    found = rows.mean(0)
    for _ in range(MEDIAN_ROUNDS):
        weights = 1 / np.maximum(np.linalg.norm(rows - found, axis=1), 1e-12)
        moved = weights @ rows / weights.sum()
        small = np.linalg.norm(moved - found) <= MEDIAN_TOLERANCE * np.linalg.norm(found)
        found = moved
        if small:
            break
    return found
