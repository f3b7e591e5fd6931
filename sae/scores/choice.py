"""Which latents are chosen: those of the largest scores in one half of the tasks.

The score of a latent is its metric, the first group against the second or the reverse; with
categories the least of all categories. A latent that the background activates too often is left
out, and so is one without a score, or whose score does not favour the group.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sae.scores.figures import LatentFigures, q_values
from sae.scores.latent_sums import LatentSums, total_of
from sae.scores.settings import Metric

NEUTRAL: Mapping[str, float] = {"auroc": 0.5}
"""Score of a latent that does not tell the groups apart, where that is not 0."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HalfFigures:
    """Figures of one half of the tasks.

    Attributes:
        categories: figures of each category, by its name.
        pooled: figures of the rows of all categories together.
    """

    categories: Mapping[str, LatentFigures]
    pooled: LatentFigures

    @classmethod
    def of(
        cls, categories: Sequence[str], sums: Sequence[tuple[LatentSums, LatentSums]]
    ) -> "HalfFigures":
        """Return the figures of the groups' sums, one pair for each category."""
        firsts, seconds = zip(*sums, strict=True)
        found = {name: LatentFigures.of(*pair) for name, pair in zip(categories, sums, strict=True)}
        if len(sums) == 1:
            return cls(categories=found, pooled=found[categories[0]])
        pooled = LatentFigures.of(total_of(firsts), total_of(seconds))
        return cls(categories=found, pooled=pooled)

    def reversed(self) -> "HalfFigures":
        """Return the figures with the groups exchanged."""
        found = {name: figures.reversed() for name, figures in self.categories.items()}
        return HalfFigures(categories=found, pooled=self.pooled.reversed())

    def scores(self, metric: Metric) -> np.ndarray:
        """Return `[d_sae]`, each latent's least metric over the categories; NaN without one."""
        return np.min([getattr(one, metric) for one in self.categories.values()], axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Latents that are chosen for one group, the largest score first.

    Attributes:
        group: name of the group that activates them.
        latents: `[N]` int.
        selection: figures of the half that they were chosen on, this group against the other.
        test: figures of the other half; None if all rows were for the choice.
        test_q: `[N]`, q of the pooled test half over the chosen latents alone.
    """

    group: str
    latents: np.ndarray
    selection: HalfFigures
    test: HalfFigures | None
    test_q: np.ndarray | None


def chosen(
    group: str,
    selection: HalfFigures,
    test: HalfFigures | None,
    *,
    metric: Metric,
    top: int,
    allowed: np.ndarray,
) -> Choice:
    """Return the latents of one group.

    Args:
        group: name of the group.
        selection: figures of the half to choose on, this group against the other.
        test: figures of the other half.
        metric: figure to choose by.
        top: most latents.
        allowed: `[d_sae]` bool, latents that may be chosen.
    """
    scores = selection.scores(metric)
    usable = allowed & (scores > NEUTRAL.get(metric, 0.0))  # false for NaN
    order = np.argsort(np.where(usable, -scores, np.inf), kind="stable")
    latents = order[: min(top, int(usable.sum()))]
    return Choice(
        group=group,
        latents=latents,
        selection=selection,
        test=test,
        test_q=None if test is None else q_values(test.pooled.p[latents]),
    )
