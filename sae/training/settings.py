"""Settings of a training: what is trained, on which rows, how it is kept.

A setting that is left out has the value of the preset; `PRESETS` binds those that only make sense
together, such as the bandwidth of JumpReLU and the norm that rows are scaled to.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.fields import Settings, flag
from sae.architectures import ARCHITECTURES

Normalization = Literal["none", "mean_norm", "mean_square"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # SAELens 6's defaults and documentation: free decoder of norm 0.1, rows of mean norm sqrt(d).
    "saelens": {
        "normalize": "mean_norm",
        "learning_rate": 3e-4,
        "warm_up_rows": 0,
        "adam_b1": 0.9,
        "decoder_norm": "free",
        "decoder_init_norm": 0.1,
        "rescale_by_decoder_norm": True,
        "b_dec_init": "zeros",
        "aux_coefficient": 1.0,
        "aux_normalized": False,
        "threshold_rate": 0.01,
        "bandwidth": 0.05,
        "init_threshold": 0.01,
        "l0_warm_up_rows": 0,
        "l1_warm_up_rows": 0,
    },
    # Gemma Scope (arXiv 2408.05147): unit decoder, rows of mean square norm 1.
    "gemma_scope": {
        "normalize": "mean_square",
        "learning_rate": 7e-5,
        "warm_up_rows": 4_096_000,
        "adam_b1": 0.0,
        "decoder_norm": "unit",
        "decoder_init_norm": 1.0,
        "rescale_by_decoder_norm": False,
        "b_dec_init": "zeros",
        "aux_coefficient": 1 / 32,
        "aux_normalized": True,
        "threshold_rate": 0.01,
        "bandwidth": 0.001,
        "init_threshold": 0.001,
        "l0_warm_up_rows": 40_960_000,
        "l1_warm_up_rows": 40_960_000,
    },
    # dictionary_learning's demo, the suite of SAEBench: unit decoder, rows of mean square norm 1.
    "dictionary_learning": {
        "normalize": "mean_square",
        "learning_rate": 3e-4,
        "warm_up_rows": 2_048_000,
        "adam_b1": 0.9,
        "decoder_norm": "unit",
        "decoder_init_norm": 1.0,
        "rescale_by_decoder_norm": False,
        "b_dec_init": "geometric_median",
        "aux_coefficient": 1 / 32,
        "aux_normalized": True,
        "threshold_rate": 0.001,
        "bandwidth": 0.001,
        "init_threshold": 0.001,
        "l0_warm_up_rows": 10_240_000,
        "l1_warm_up_rows": 10_240_000,
    },
}
"""Values of settings that belong together, by the project that published them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeSettings(Settings):
    """Settings of one sparse autoencoder; a sweep has several.

    After `resolved` no setting of a preset is None.
    """

    group: ClassVar[str] = "sparse autoencoder"

    architecture: str = flag(
        "Architecture: " + ", ".join(ARCHITECTURES) + ".", decides="rows", default="batch_topk"
    )
    d_sae: str = flag(
        "Number of latents, or a multiple of the width of the rows.",
        decides="rows",
        default="8x",
        example="16384",
    )
    k: int = flag(
        "Active latents of a row: topk; on average: batch_topk, matryoshka_batch_topk.",
        decides="rows",
        default=64,
        least=1,
    )
    preset: Literal["saelens", "gemma_scope", "dictionary_learning"] = flag(
        "Whose values the settings below have that are not given.",
        decides="rows",
        default="saelens",
    )
    random_seed: int = flag("Seed of the initial weights.", decides="rows", default=0, least=0)
    normalize: Normalization | None = flag(
        "Scale rows by the run's statistics: mean_norm makes the mean norm sqrt(width), mean_square"
        " the mean squared norm 1. The scale is folded into the weights at the end.",
        decides="rows",
        default=None,
        example="mean_norm",
    )
    learning_rate: float | None = flag(
        "Learning rate of Adam.", decides="rows", default=None, example=3e-4, least=0, most=10
    )
    warm_up_rows: int | None = flag(
        "Rows over which the learning rate grows to its value.",
        decides="rows",
        default=None,
        example=1_000_000,
        least=0,
    )
    decay_fraction: float = flag(
        "Last part of the training in which the learning rate falls to zero.",
        decides="rows",
        default=0.2,
        least=0,
        most=1,
    )
    adam_b1: float | None = flag(
        "Adam's decay of the first moment.",
        decides="rows",
        default=None,
        example=0.9,
        least=0,
        most=0.9999,
    )
    clip_norm: float = flag(
        "Largest norm of all gradients together; longer ones are scaled down.",
        decides="rows",
        default=1.0,
        least=0,
    )
    decoder_norm: Literal["free", "unit"] | None = flag(
        "Whether rows of the decoder are kept at norm 1.",
        decides="rows",
        default=None,
        example="free",
    )
    decoder_init_norm: float | None = flag(
        "Norm of the decoder's rows at the start.",
        decides="rows",
        default=None,
        example=0.1,
        least=1e-6,
        most=1e3,
    )
    rescale_by_decoder_norm: bool | None = flag(
        "Choose the largest latents by their value times the norm of their decoder row.",
        decides="rows",
        default=None,
        example=True,
    )
    b_dec_init: Literal["zeros", "mean", "geometric_median"] | None = flag(
        "Decoder bias at the start; the mean or geometric median of the first batch.",
        decides="rows",
        default=None,
        example="mean",
    )
    aux_coefficient: float | None = flag(
        "Weight of the loss by which dead latents learn what the others leave.",
        decides="rows",
        default=None,
        example=1.0,
        least=0,
    )
    aux_normalized: bool | None = flag(
        "Divide that loss by the variance of what it should reconstruct.",
        decides="rows",
        default=None,
        example=False,
    )
    dead_rows: int = flag(
        "Rows without firing after which a latent counts as dead.",
        decides="rows",
        default=4_096_000,
        least=1,
    )
    threshold_rate: float | None = flag(
        "Rate of the running average of the smallest active latent, which becomes the threshold.",
        decides="rows",
        default=None,
        example=0.01,
        least=0,
        most=1,
    )
    sparsity_loss: Literal["step", "quadratic"] = flag(
        "Sparsity loss of jumprelu: the number of active latents, or its squared distance from"
        " a target.",
        decides="rows",
        default="step",
    )
    l0_coefficient: float = flag(
        "Weight of jumprelu's sparsity loss.", decides="rows", default=1.0, least=0
    )
    l0_warm_up_rows: int | None = flag(
        "Rows over which that weight grows to its value.",
        decides="rows",
        default=None,
        example=0,
        least=0,
    )
    target_l0: float | None = flag(
        "Active latents of a row that the quadratic loss aims at.",
        decides="rows",
        default=None,
        example=64,
        least=0.01,
    )
    bandwidth: float | None = flag(
        "Width of the kernel that gives jumprelu's thresholds a gradient.",
        decides="rows",
        default=None,
        example=0.05,
        least=1e-6,
    )
    init_threshold: float | None = flag(
        "Thresholds of jumprelu at the start.",
        decides="rows",
        default=None,
        example=0.01,
        least=0,
    )
    l1_coefficient: float = flag(
        "Weight of the L1 loss of architecture standard.", decides="rows", default=1.0, least=0
    )
    l1_warm_up_rows: int | None = flag(
        "Rows over which that weight grows to its value.",
        decides="rows",
        default=None,
        example=0,
        least=0,
    )
    matryoshka_widths: list[int] | None = flag(
        "Nested widths of matryoshka_batch_topk, the last is all latents; left out: 1/32, 3/32,"
        " 7/32, 15/32 of all, and all.",
        decides="rows",
        default=None,
        example="512 2048 7168",
    )

    def _check(self) -> None:
        super()._check()
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(
                f"{setting('architecture')} must be one of {known}, not {self.architecture!r}"
            )
        latents_of(self.d_sae, 1)
        quadratic = self.architecture == "jumprelu" and self.sparsity_loss == "quadratic"
        if quadratic and self.target_l0 is None:
            raise InputError(
                f"{setting('sparsity_loss', 'quadratic')} needs {setting('target_l0')}"
            )

    def resolved(self, d_in: int) -> "SaeSettings":
        """Return the settings with a number of latents, and with the preset's values.

        Args:
            d_in: width of the rows.

        Raises:
            InputError: they do not fit the width.
        """
        latents = latents_of(self.d_sae, d_in)
        given = {
            name: value
            for name, value in PRESETS[self.preset].items()
            if getattr(self, name) is None
        }
        if self.architecture == "matryoshka_batch_topk":
            given["matryoshka_widths"] = _widths(self.matryoshka_widths, latents)
        found = dataclasses.replace(self, d_sae=str(latents), **given)
        if ARCHITECTURES[self.architecture].selection is not None and found.k > latents:
            raise InputError(
                f"{setting('k', self.k)} is more than {setting('d_sae', self.d_sae)}, which is"
                f" {latents} latents"
            )
        if found.decoder_norm == "unit" and found.decoder_init_norm != 1:
            raise InputError(
                f"{setting('decoder_norm', 'unit')} needs {setting('decoder_init_norm', 1)},"
                f" not {found.decoder_init_norm}"
            )
        return found

    @property
    def latents(self) -> int:
        """Number of latents, of resolved settings."""
        return int(self.d_sae)


def latents_of(text: str, d_in: int) -> int:
    """Return the number of latents that a text such as `8x` or `16384` means.

    Raises:
        InputError: it means none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(x?)\s*", text)
    number = float(found[1]) if found else 0.0
    latents = round(number * d_in) if found and found[2] else int(number)
    if latents < 1 or (found and not found[2] and number != latents) or latents > 1 << 30:
        raise InputError(
            f"{setting('d_sae')} must be a number of latents such as 16384, or a multiple of the"
            f" width such as 8x, not {text!r}"
        )
    return latents


def _widths(asked: list[int] | None, latents: int) -> list[int]:
    """Return the nested widths, of which the last is all latents."""
    if asked is None:
        parts = {max(1, latents * part // 32) for part in (1, 3, 7, 15)}
        return sorted(parts | {latents})
    name = setting("matryoshka_widths")
    rising = all(before < after for before, after in itertools.pairwise(asked))
    if asked[0] < 1 or asked[-1] > latents or not rising:
        raise InputError(f"{name} must rise from 1 to at most {latents}, not {asked}")
    return asked if asked[-1] == latents else [*asked, latents]
