"""Losses and gradients of transcoders against torch's autograd, in float64.

SAELens trains no transcoders, so `test_steps_against_saelens` has no case for them. The losses are
written out here in torch; dead latents are among the selected cases.
"""

import jax
import numpy as np
import pytest
import torch

from sae.training import dense_gradients
from sae.training.settings import SaeSettings
from sae.training.sparse_gradients import SparseGradients

BATCH, D_IN, D_OUT, D_SAE, K = 24, 12, 18, 40, 5
DEAD = np.arange(D_SAE) < 6
WIDTHS = [8, 20, D_SAE]

CASES = [
    {"architecture": "batch_topk"},
    {"architecture": "batch_topk", "rescale_by_decoder_norm": False},
    {"architecture": "topk"},
    {"architecture": "topk", "aux_coefficient": 1 / 32, "aux_normalized": True},
    {"architecture": "matryoshka_batch_topk", "matryoshka_widths": WIDTHS},
    {"architecture": "standard", "l1_coefficient": 0.5},
]


def arrays():
    random = np.random.default_rng(0)
    params = {
        "encoder": random.standard_normal((D_SAE, D_IN)) / 3,
        "decoder": random.standard_normal((D_SAE, D_OUT)) / 4,
        "b_enc": 0.1 * random.standard_normal(D_SAE),
        "b_dec": 0.1 * random.standard_normal(D_OUT),
    }
    params["b_enc"][DEAD] -= 5  # never among the largest
    rows = random.standard_normal((BATCH, D_IN))
    return params, rows, rows @ random.standard_normal((D_IN, D_OUT)) + 0.5


def torch_outcome(settings, params, rows, targets, coefficient):
    """The losses, and the gradients of their sum."""
    p = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    rows, targets = torch.tensor(rows), torch.tensor(targets)
    pre = rows @ p["encoder"].T + p["b_enc"]
    norms = torch.linalg.norm(p["decoder"], dim=1).detach()
    if not settings.rescale_by_decoder_norm:
        norms = torch.ones_like(norms)
    latents = torch.relu(pre)
    if settings.architecture != "standard":
        scores = (latents * norms).detach()
        if settings.architecture == "topk":
            least = scores.topk(K, dim=1).values[:, -1:]
        else:
            least = scores.flatten().topk(K * BATCH).values[-1]
        latents = latents * (scores >= least)
    losses = {}
    for width in settings.matryoshka_widths or [D_SAE]:
        output = latents[:, :width] @ p["decoder"][:width] + p["b_dec"]
        name = "mse" if width == D_SAE else f"mse_{width}"
        losses[name] = ((output - targets) ** 2).sum(1).mean()
    if settings.architecture == "standard":
        weighted = (latents * torch.linalg.norm(p["decoder"], dim=1)).sum(1).mean()
        losses["penalty"] = coefficient * weighted
    else:
        dead = torch.tensor(DEAD)
        residual = (targets - output).detach()
        count = min(D_OUT // 2, int(dead.sum()))
        scores = torch.where(dead, (pre * norms).detach(), -torch.inf)
        chosen = scores >= scores.topk(count, dim=1).values[:, -1:]
        error = (((pre * (chosen & dead)) @ p["decoder"] - residual) ** 2).sum(1).mean()
        if settings.aux_normalized:
            error = error / ((residual - residual.mean(0)) ** 2).sum(1).mean()
        else:
            error = error * min(DEAD.sum() / (D_OUT // 2), 1)
        losses["aux"] = settings.aux_coefficient * error
    sum(losses.values()).backward()
    return (
        {name: float(loss.detach()) for name, loss in losses.items()},
        {name: value.grad.numpy() for name, value in p.items()},
        (latents > 0).sum(0).numpy(),
    )


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_torch(case, sparse):
    if sparse and case["architecture"] == "standard":
        pytest.skip("the sparse path is for architectures that select")
    settings = SaeSettings(d_sae=str(D_SAE), k=K, **case).resolved(D_IN)
    params, rows, targets = arrays()
    losses, gradients, fired = torch_outcome(settings, params, rows, targets, 0.5)
    with jax.enable_x64(True):
        if sparse:
            step = SparseGradients(settings, threads=2)
            found = step(params, rows, targets, DEAD)
            step.close()
        else:
            found = dense_gradients.gradients(
                {name: jax.numpy.asarray(value) for name, value in params.items()},
                jax.numpy.asarray(rows),
                jax.numpy.asarray(targets),
                jax.numpy.asarray(DEAD),
                np.float64(0.5),
                settings,
            )
    assert not fired[DEAD].any()
    np.testing.assert_array_equal(found.fired, fired)
    assert found.losses.keys() == losses.keys()
    for name, loss in losses.items():
        np.testing.assert_allclose(float(found.losses[name]), loss, rtol=1e-10)
    for name, value in gradients.items():
        np.testing.assert_allclose(
            np.asarray(found.gradients[name]), value, rtol=1e-8, atol=1e-12, err_msg=name
        )
