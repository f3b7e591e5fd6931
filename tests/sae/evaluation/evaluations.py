"""Evaluations made of random autoencoders, for tests of the page."""

import dataclasses

import numpy as np

from sae.evaluation.model import ModelFigures
from sae.evaluation.rows import evaluate_rows
from sae.evaluation.run import Evaluated, Evaluation
from sae.evaluation.settings import EvaluateSettings
from tests.sae.autoencoders import KINDS, random_autoencoder


def evaluation(names: list[str], text: str = "texts.jsonl", *, model: bool = True) -> Evaluation:
    """One with these names of autoencoders; `text` stands wherever else a user's text may."""
    rows = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    rows[0] *= 300
    rows[1, 0] = np.nan
    metadata = {
        "training_architecture": text,
        "rows_trained_on": 40_000,
        "training_settings": {"k": text, text: text},
        text: text,
    }
    several = []
    for number, name in enumerate(names):
        sae = random_autoencoder(KINDS[number % 4], number, d_sae=256)
        sae = dataclasses.replace(sae, metadata=metadata)
        figures = ModelFigures(
            tokens=1234,
            special=5,
            sinks=6,
            max_norm=24.0,
            ce_clean=3.25,
            ce_spliced=3.5 + number,
            ce_ablated=9.0,
            ce_recovered=0.95 - number / 10,
            kl_spliced=0.25,
            kl_ablated=6.0,
        )
        several.append(
            Evaluated(
                name=name,
                address=f"{text}/{name}",
                sae=sae,
                hook_point=text,
                target=None,
                rows=evaluate_rows({name: sae}, rows, max_norm=24.0)[name],
                model=figures if model else None,
                metrics=_metrics(number, text),
                trained_on=number == 0,
            )
        )
    settings = EvaluateSettings(
        saes=["a"],
        activations_dir=text,
        model_path=text if model else None,
        dataset=text if model else None,
    )
    return Evaluation(settings=settings, run_id=text, left_out={text: 3}, autoencoders=several)


def _metrics(number: int, text: str) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = [
        {
            "autoencoder": text,
            "step": step,
            "rows": 40 * step,
            "loss": 1000.0 / step**0.5 + number,
            "fvu": 0.9 / step**0.2,
            "l0": 32.0 + number,
            "dead": step * number,
            "rows_per_second": 5000.0 + step,
        }
        for step in range(1, 1001)
    ]
    # What a file may hold, but a plot cannot.
    odd: list[object] = [text, None, float("nan"), float("inf"), -1, True, [1], 10**400]
    names = ("loss", "fvu", "l0", "dead", "rows_per_second")
    return lines + [lines[-1] | dict.fromkeys(names, value) for value in odd]
