"""Latents with a text of others wherever there may be one, for tests of the page."""

import dataclasses
from pathlib import Path

import numpy as np

from sae import save
from sae.latents.lens import LogitLens
from sae.latents.run import Latents, describe
from sae.latents.settings import LatentsSettings
from tests.sae.autoencoders import random_autoencoder
from tests.sae.latents.described_run import HOOK, DescribedRun


def described(folder: Path, text: str = "text") -> Latents:
    """Sixteen latents, the last of which is never active, of a small run in this folder."""
    sae = random_autoencoder("topk")
    sae.b_enc[-1] = -99
    save(sae, folder / "sae")
    DescribedRun().write(folder / "run")
    settings = LatentsSettings(
        sae=str(folder / "sae"),
        activations_dir=str(folder / "run"),
        hook_point=HOOK,
        output_dir=str(folder / "out"),
        top=6,
    )
    found = describe(settings)
    assert found is not None
    ids = np.tile(np.arange(3), (16, 1))
    logits = np.tile(np.float32([3, 2, 1]), (16, 1))
    lens = LogitLens(
        top=ids, top_logits=logits, bottom=ids + 3, bottom_logits=-logits, texts={4: text, 2: text}
    )
    tasks = np.full(len(found.examples), text, object)
    return dataclasses.replace(
        found,
        settings=dataclasses.replace(settings, sae=text, activations_dir=text, model_path=text),
        hook_point=text,
        model_name=text,
        texts={**found.texts, 5: text, 6: text},
        contexts=dataclasses.replace(found.contexts, task_ids=tasks),
        lens=dataclasses.replace(lens, texts={token: text for token in range(6)}),
    )


def written(folder: Path, latents: Latents, *, beside: bool = False) -> Path:
    """Write a page as the command does; return its path."""
    from sae.latents.page import page_of
    from sae.latents.page_data import data_of

    data = data_of(latents)
    if beside:
        data = dataclasses.replace(data, most_embedded=0)
    path = folder / "page/latents.html"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(page_of(latents, data).encode())
    for name, content in data.files().items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(content)
    return path
