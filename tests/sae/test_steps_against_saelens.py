"""20 training steps come to what SAELens' trainer comes to, from the same weights and batches.

`tests/peers/write_sae_steps.py` wrote SAELens' side, in float64. In every case latents are dead for
some of the steps.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from sae.training.autoencoder_training import AutoencoderTraining, Counters
from sae.training.optimizer import initial_state, make_optimizer
from sae.training.settings import SaeSettings

FOLDER = Path(__file__).parents[1] / "peers" / "sae_steps"

BATCH, STEPS, D_IN, D_SAE = 48, 20, 16, 64

COMMON = {
    "d_sae": str(D_SAE),
    "k": 5,
    "learning_rate": 3e-3,
    "warm_up_rows": 5 * BATCH,
    "decay_fraction": 4 / STEPS,
    "dead_rows": 3 * BATCH,
}

CASES = {
    "batch_topk": {"architecture": "batch_topk"},
    "batch_topk_unscaled": {"architecture": "batch_topk", "rescale_by_decoder_norm": False},
    "topk": {"architecture": "topk"},
    "topk_unscaled": {"architecture": "topk", "rescale_by_decoder_norm": False},
    "matryoshka_batch_topk": {
        "architecture": "matryoshka_batch_topk",
        "matryoshka_widths": [8, 24, D_SAE],
    },
    "jumprelu_step": {
        "architecture": "jumprelu",
        "l0_coefficient": 0.3,
        "l0_warm_up_rows": 6 * BATCH,
        "bandwidth": 0.5,
    },
    "jumprelu_quadratic": {
        "architecture": "jumprelu",
        "sparsity_loss": "quadratic",
        "target_l0": 6,
        "l0_coefficient": 0.3,
        "bandwidth": 0.5,
    },
    "standard": {"architecture": "standard", "l1_coefficient": 0.5, "l1_warm_up_rows": 4 * BATCH},
}

PATHS = [
    (case, sparse) for case in CASES for sparse in (False, True) if not sparse or "topk" in case
]


def _trained(case: str, sparse: bool, dtype: type) -> tuple[list, list, dict, float]:
    """Return total losses, numbers of dead latents, final parameters and threshold."""
    inputs = np.load(FOLDER / "inputs.npz")
    settings = SaeSettings(**COMMON, **CASES[case]).resolved(D_IN)
    training = AutoencoderTraining(settings, D_IN, None, BATCH, STEPS, sparse=sparse)
    params = {
        "encoder": inputs["W_enc"].T.astype(dtype),
        "decoder": inputs["W_dec"].astype(dtype),
        "b_enc": inputs["b_enc"].astype(dtype),
        "b_dec": inputs["b_dec"].astype(dtype),
    }
    if settings.architecture == "jumprelu":
        # SAELens holds the thresholds in float32
        params["threshold"] = np.full(D_SAE, np.float32(settings.init_threshold), dtype)
    training.restore(initial_state(params, make_optimizer(settings, BATCH, STEPS)), Counters())
    losses, dead = [], []
    for batch in inputs["batches"].astype(dtype):
        dead.append(0 if training.counters.steps == 0 else training.metrics()["dead"])
        training.step(batch)
        losses.append(training.metrics()["loss"])
    training.close()
    assert training.state is not None
    found = {name: np.asarray(value) for name, value in training.state["params"].items()}
    return losses, dead, found, float(training.state["threshold"])


@pytest.mark.parametrize(("case", "sparse"), PATHS)
def test_equal_in_float64(case: str, sparse: bool):
    theirs = np.load(FOLDER / f"{case}.npz")
    with jax.enable_x64(True):
        losses, dead, found, threshold = _trained(case, sparse, np.float64)
    assert dead == theirs["dead"].tolist()
    assert max(dead) >= 5
    np.testing.assert_allclose(losses, theirs["losses"][:, 0], rtol=1e-8)
    for ours, name in {"encoder": "W_enc", "decoder": "W_dec"}.items():
        value = found[ours].T if ours == "encoder" else found[ours]
        np.testing.assert_allclose(value, theirs[name], rtol=1e-8, atol=1e-8)
    for name in {"b_enc", "b_dec", "threshold"} & found.keys():
        np.testing.assert_allclose(found[name], theirs[name], rtol=1e-8, atol=1e-8)
    if "topk_threshold" in theirs:
        np.testing.assert_allclose(threshold, theirs["topk_threshold"], rtol=1e-8)


@pytest.mark.parametrize(("case", "sparse"), PATHS)
def test_close_in_float32(case: str, sparse: bool):
    theirs = np.load(FOLDER / f"{case}.npz")
    losses, _, found, threshold = _trained(case, sparse, np.float32)
    np.testing.assert_allclose(losses, theirs["losses"][:, 0], rtol=1e-4)
    if "threshold" in found:
        np.testing.assert_allclose(found["threshold"], theirs["threshold"], rtol=1e-4, atol=1e-6)
    if "topk_threshold" in theirs:
        np.testing.assert_allclose(threshold, theirs["topk_threshold"], rtol=1e-4)
