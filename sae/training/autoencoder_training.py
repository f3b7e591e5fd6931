"""The training of one autoencoder: its state, and one step after the other."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae.architectures import ARCHITECTURES
from sae.autoencoder import SparseAutoencoder
from sae.training import dense_gradients
from sae.training.exported import exported
from sae.training.initial_params import initial_params, param_shapes
from sae.training.optimizer import (
    advance,
    coefficient,
    initial_state,
    is_dead,
    learning_rate,
    make_optimizer,
)
from sae.training.outcome import Outcome
from sae.training.processes import rows_of_all, whole
from sae.training.settings import SaeSettings
from sae.training.sparse_gradients import SparseGradients

DENSITY_ROWS = 8_192_000
"""Firing frequencies are counted over windows of at least so many rows."""


class Counters(NamedTuple):
    """What a training counts beside its arrays.

    Attributes:
        steps: finished steps.
        rows: rows of these.
        density_rows: rows since `fired_rows` was last zero.
    """

    steps: int = 0
    rows: int = 0
    density_rows: int = 0


class AutoencoderTraining:
    """Trains one autoencoder on batches that are handed to it.

    On a CPU without a mesh, architectures that select the largest latents use `SparseGradients`;
    everything else is one compiled program.

    Args:
        settings: settings of the autoencoder, resolved for `d_in`.
        d_in: width of the rows.
        d_out: width of the targets; None: the rows are their own targets.
        batch_size: rows of a batch, of all processes together.
        steps: steps of the whole training, for the schedule.
        scales: numbers that rows and targets are multiplied by.
        mesh: devices of all processes with the axes `data` and `latent`; None: one device.
        sparse: whether to use the sparse path; None: where it is faster.

    Attributes:
        state: see `initial_state`; None before the first step.
        counters: what was done so far.
    """

    def __init__(
        self,
        settings: SaeSettings,
        d_in: int,
        d_out: int | None,
        batch_size: int,
        steps: int,
        scales: tuple[float, float] = (1.0, 1.0),
        mesh: Mesh | None = None,
        sparse: bool | None = None,
    ):
        self.settings, self.d_in, self.d_out = settings, d_in, d_out
        self.batch_size, self.steps, self.scales = batch_size, steps, scales
        self.state: Any = None
        self.counters = Counters()
        self._last: Outcome | None = None
        self._mesh = mesh
        self._optimizer = make_optimizer(settings, batch_size, steps)
        selects = ARCHITECTURES[settings.architecture].selection is not None
        if sparse is None:
            sparse = selects and mesh is None and jax.default_backend() == "cpu"
        self._sparse = SparseGradients(settings) if sparse else None
        update = functools.partial(
            advance, rows=batch_size, settings=settings, optimizer=self._optimizer
        )
        self._advance = jax.jit(update, donate_argnums=0)
        self._dense_step = jax.jit(self._step_densely, donate_argnums=0)

    def begin(self, targets: np.ndarray) -> None:
        """Make the state of the first step.

        Args:
            targets: `[B, d_out]`, this process's unscaled targets (or rows) of the first batch.
        """
        width = self.d_in if self.d_out is None else self.d_out
        scaled = rows_of_all(targets) * np.float32(self.scales[1])
        self.restore(
            initial_state(initial_params(self.settings, self.d_in, width, scaled), self._optimizer),
            Counters(),
        )

    def restore(self, state: Any, counters: Counters) -> None:
        """Go on from a state, such as `abstract_state` describes."""
        self.state = jax.tree_util.tree_map_with_path(self._placed, state)
        self.counters = counters

    def abstract_state(self) -> Any:
        """Return the shapes and dtypes of the state."""
        width = self.d_in if self.d_out is None else self.d_out
        shapes = param_shapes(self.settings, self.d_in, width)
        params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
        return jax.eval_shape(lambda given: initial_state(given, self._optimizer), params)

    def step(self, rows: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Train on a batch.

        Args:
            rows: `[batch_size / processes, d_in]` float32, this process's rows, unscaled.
            targets: `[batch_size / processes, d_out]` float32, unscaled; None: the rows.
        """
        if self.state is None:
            self.begin(rows if targets is None else targets)
        state: Any = self.state
        rows = rows if self.scales[0] == 1 else rows * np.float32(self.scales[0])
        if targets is not None and self.scales[1] != 1:
            targets = targets * np.float32(self.scales[1])
        steps, seen, window = self.counters
        if window >= DENSITY_ROWS:
            state["fired_rows"] = jax.numpy.zeros_like(state["fired_rows"])
            window = 0
        if self._sparse is not None:
            self._last = self._step_sparsely(self._sparse, rows, targets)
        else:
            weight = coefficient(self.settings, self.batch_size, steps)
            batch = jax.tree.map(self._placed_rows, (rows, targets))
            self.state, self._last = self._dense_step(state, *batch, weight)
        rows_seen = self.batch_size
        self.counters = Counters(steps + 1, seen + rows_seen, window + rows_seen)

    def lowered(self) -> Any:
        """Return the step's program for the mesh, to be compiled; no device of it need be here."""
        assert self._mesh is not None
        state = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.sharding(path, leaf)
            ),
            self.abstract_state(),
        )
        rows, targets = (
            None
            if width is None
            else jax.ShapeDtypeStruct(
                (self.batch_size, width), np.float32, sharding=self.rows_sharding()
            )
            for width in (self.d_in, self.d_out)
        )
        return self._dense_step.lower(state, rows, targets, 0.0)

    def _step_sparsely(
        self, gradients: SparseGradients, rows: np.ndarray, targets: np.ndarray | None
    ) -> Outcome:
        assert self.state is not None
        params = {name: np.asarray(value) for name, value in self.state["params"].items()}
        dead = np.asarray(is_dead(self.state, self.settings))
        outcome = gradients(params, rows, targets, dead)
        del params  # views of what is given away now
        self.state = self._advance(
            self.state,
            outcome.gradients,
            outcome.fired,
            self.state["threshold"].dtype.type(outcome.smallest),
        )
        return outcome._replace(gradients={})

    def _step_densely(
        self, state: dict[str, Any], rows: Any, targets: Any, weight: Any
    ) -> tuple[dict[str, Any], Outcome]:
        dead = is_dead(state, self.settings)
        if self._mesh is not None:  # read in parts by all devices; gathered over the latents
            over_data = NamedSharding(self._mesh, PartitionSpec("data"))
            rows, targets = jax.tree.map(
                lambda part: jax.lax.with_sharding_constraint(part, over_data), (rows, targets)
            )
        outcome = dense_gradients.gradients(
            state["params"],
            rows,
            targets,
            dead,
            weight,
            self.settings,
            split=self._mesh is not None and self._mesh.shape["latent"] > 1,
        )
        state = advance(
            state,
            outcome.gradients,
            outcome.fired,
            outcome.smallest,
            self.batch_size,
            self.settings,
            self._optimizer,
        )
        return state, outcome._replace(gradients={})

    def _placed(self, path: Any, leaf: Any) -> Any:
        if self._mesh is None:
            return jax.device_put(leaf)
        full = np.asarray(leaf)
        return jax.make_array_from_callback(
            full.shape, self.sharding(path, leaf), lambda place: full[place]
        )

    def _placed_rows(self, rows: np.ndarray) -> Any:
        if self._mesh is None:
            return rows
        return jax.make_array_from_process_local_data(self.rows_sharding(), rows)

    def rows_sharding(self) -> NamedSharding:
        """Return where a batch lives at first: each device has a part of its rows."""
        assert self._mesh is not None
        return NamedSharding(self._mesh, PartitionSpec(("data", "latent")))

    def sharding(self, path: Any, leaf: Any) -> Any:
        """Return where an array of the state lives: latents are split over axis `latent`."""
        assert self._mesh is not None
        name = next((key.key for key in reversed(path) if hasattr(key, "key")), None)
        split = leaf.ndim > 0 and name != "b_dec"
        return NamedSharding(self._mesh, PartitionSpec("latent") if split else PartitionSpec())

    def metrics(self) -> dict[str, float]:
        """Return what the last step came to; waits for it.

        Losses are those of scaled rows. `l0`: active latents of a row.
        """
        assert self._last is not None
        assert self.state is not None
        rate = learning_rate(self.settings, self.batch_size, self.steps)
        losses = {name: float(value) for name, value in self._last.losses.items()}
        return {
            "step": self.counters.steps,
            "rows": self.counters.rows,
            "loss": sum(losses.values()),
            **losses,
            "l0": float(whole(self._last.fired).sum()) / self.batch_size,
            "dead": self.dead(),
            "learning_rate": float(np.asarray(rate(self.counters.steps - 1))),
            "threshold": self.threshold(),
        }

    def threshold(self) -> float:
        """Return the running average of the smallest active score, without its beginning at zero.

        The average that is kept begins at zero, as SAELens' does; after few steps it is still near
        it. So it is divided by the weight that the steps have in it, as Adam's averages are.
        """
        rate = self.settings.threshold_rate or 0.0
        weight = -math.expm1(self.counters.steps * math.log1p(-rate)) if rate < 1 else 1.0
        return float(self.state["threshold"]) / weight if weight else 0.0

    def dead(self) -> int:
        """Return the number of latents that did not fire for `dead_rows` rows."""
        return int((whole(self.state["rows_since_fired"]) > self.settings.dead_rows).sum())

    def densities(self) -> np.ndarray:
        """Return `[d_sae]` float64: the part of the last rows in which each latent fired."""
        assert self.state is not None
        fired = whole(self.state["fired_rows"]).astype(np.float64)
        return fired / max(self.counters.density_rows, 1)

    def autoencoder(self, metadata: dict[str, Any] | None = None) -> SparseAutoencoder:
        """Return the autoencoder as it is now, for unscaled rows."""
        assert self.state is not None
        params = whole(self.state["params"])
        return exported(
            params,
            self.threshold(),
            self.settings,
            scales=self.scales,
            transcoder=self.d_out is not None,
            metadata=metadata or {},
        )

    def close(self) -> None:
        """End the threads."""
        if self._sparse is not None:
            self._sparse.close()
