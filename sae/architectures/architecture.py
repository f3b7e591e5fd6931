"""What an architecture is to the training and to the files.

An architecture says which latents are active and what their sparsity costs. Everything else
(reconstruction, dead latents, optimiser, state) is the same for all. The functions import JAX
inside, so that settings and `--help` need none.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

Selection = Literal["row", "batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture of sparse autoencoders.

    Attributes:
        name: its name in settings.
        exported_as: SAELens' name of the architecture that its files have.
        selection: the `k` largest latents are active: of each row, or `k` times the rows of a batch
            of the whole batch; None: whatever `activate` says.
        nested: the loss is also that of prefixes of the latents, `matryoshka_widths`.
        parameters: further parameters and their initial values, by name: `settings -> {name:
            number}`; each is `[d_sae]`.
        activate: `(params, pre, settings) -> latents`, for architectures without a selection; `pre`
            and latents are `[B, d_sae]` JAX arrays.
        penalty: `(params, pre, latents, coefficient, settings) -> loss`, a JAX scalar.
        coefficient: `(settings) -> (value, warm-up rows)` of the penalty.
        floors: least values of parameters, applied before each step.
    """

    name: str
    exported_as: str
    selection: Selection | None = None
    nested: bool = False
    parameters: Callable[[Any], Mapping[str, float]] = lambda settings: {}
    activate: Callable[..., Any] | None = None
    penalty: Callable[..., Any] | None = None
    coefficient: Callable[[Any], tuple[float, int]] | None = None
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)
