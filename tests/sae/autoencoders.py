"""Random autoencoders of every architecture, and plain float64 definitions of what they compute."""

import dataclasses

import numpy as np

from sae import SparseAutoencoder

KINDS = ("standard", "topk", "topk rescaled", "jumprelu", "transcoder")


def random_autoencoder(
    kind: str, seed: int = 0, *, d_in: int = 6, d_sae: int = 16, dtype: type = np.float32
) -> SparseAutoencoder:
    """An autoencoder with biases, decoder norms and thresholds that matter."""
    draw = np.random.default_rng(seed)
    architecture = kind.split()[0]
    d_out = d_in + 2 if architecture == "transcoder" else d_in

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(dtype)

    norms = draw.uniform(0.2, 3, size=(d_sae, 1)).astype(dtype)
    plain = SparseAutoencoder(
        architecture="standard",
        W_enc=normal(d_in, d_sae),
        W_dec=normal(d_sae, d_out) * norms,
        b_enc=normal(d_sae),
        b_dec=normal(d_out),
        apply_b_dec_to_input=architecture != "transcoder",
    )
    if architecture == "topk":
        rescaled = kind.endswith("rescaled")
        return dataclasses.replace(
            plain, architecture="topk", k=3, rescale_acts_by_decoder_norm=rescaled
        )
    if architecture in ("jumprelu", "transcoder"):
        threshold = draw.uniform(0, 1.5, size=d_sae).astype(dtype)
        return dataclasses.replace(plain, architecture="jumprelu", threshold=threshold)
    return plain


def expected(sae: SparseAutoencoder, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstructions in float64, row by row, as the module's formulas say."""
    w_enc, w_dec, b_enc, b_dec = (
        getattr(sae, name).astype(np.float64) for name in ("W_enc", "W_dec", "b_enc", "b_dec")
    )
    latents, outputs = [], []
    for row in rows.astype(np.float64):
        pre = (row - b_dec if sae.apply_b_dec_to_input else row) @ w_enc + b_enc
        norms = (
            np.sqrt((w_dec**2).sum(1)) if sae.rescale_acts_by_decoder_norm else np.ones(len(pre))
        )
        pre = pre * norms
        on = pre > 0
        if sae.threshold is not None:
            on &= pre > sae.threshold
        if sae.k is not None:
            on &= np.isin(np.arange(len(pre)), np.argsort(-pre, kind="stable")[: sae.k])
        latent = np.where(on, pre, 0)
        latents.append(latent)
        outputs.append((latent / np.where(norms > 0, norms, 1)) @ w_dec + b_dec)
    return np.array(latents), np.array(outputs)
