"""Writes `tests/peers/sae_values/ours`, the autoencoders that other libraries must read.

    python -m tests.sae.files.write_ours

Latents and reconstructions in `values.npz` are those of the plain float64 definitions.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sae import SparseAutoencoder, fold_b_dec
from sae.files import WRITTEN, save
from sae.files.hook_names import spellings
from tests.sae.autoencoders import KINDS, expected, random_autoencoder

OURS = Path(__file__).parents[2] / "peers" / "sae_values" / "ours"

METADATA = {
    "model_name": "Qwen/Qwen2.5-0.5B",
    "weights_sha256": "ab" * 32,
    "run_id": "run-1",
    "prepend_bos": False,
    "filters": {"max_norm_multiple": 10.0, "exclude_special": True, "skip_first": 1},
    "rows_trained_on": 1_000_000,
    **spellings("layer_6"),
}


def cases() -> Iterator[tuple[str, SparseAutoencoder]]:
    """Name and autoencoder; the name begins with the format."""
    for format in WRITTEN:
        for kind in KINDS:
            sae = random_autoencoder(kind)
            if sae.d_in != sae.d_out and format != "saelens":
                continue
            if sae.architecture != "topk" and format == "sparsify":
                continue
            more = spellings("layers.6.mlp", "_out") if kind == "transcoder" else {}
            sae = dataclasses.replace(sae, metadata={**METADATA, **more})
            yield f"{format}-{kind.replace(' ', '_')}", sae
            if kind == "transcoder":
                yield (
                    f"{format}-{kind}_of_unknown_output",
                    dataclasses.replace(sae, metadata=METADATA),
                )
            if kind in ("standard", "topk"):
                yield f"{format}-{kind}_without_b_dec", fold_b_dec(sae)


def rows_of(sae: SparseAutoencoder) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(8, sae.d_in)).astype(np.float32)


if __name__ == "__main__":
    shutil.rmtree(OURS, ignore_errors=True)
    for name, sae in cases():
        save(sae, OURS / name, format=name.partition("-")[0])
        rows = rows_of(sae)
        latents, outputs = (values.astype(np.float32) for values in expected(sae, rows))
        np.savez(OURS / name / "values.npz", rows=rows, latents=latents, outputs=outputs)
    print(f"{len(list(OURS.iterdir()))} autoencoders in {OURS}")
