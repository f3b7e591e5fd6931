"""Losses and gradients of selecting architectures on a CPU, where products with zeros cost most.

Of a batch of BatchTopK with 7,168 latents 99 % of the latents are zero. This path multiplies only
the others: numpy for the encoder, scipy's sparse matrices for the rest. It is exact, and gives what
`dense_gradients` gives, up to the order of sums.

Rows are worked on in chunks of a fixed size, latents in ranges of a fixed size, each on one thread,
and sums over chunks are added in their order: the result has the same bits on any number of cores.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import threadpoolctl

from sae.architectures import ARCHITECTURES
from sae.training.outcome import Outcome, Params
from sae.training.settings import SaeSettings

CHUNK_ROWS = 256
GATHER_ROWS = 16
LATENT_RANGE = 512
AUX_CHUNKS = 8

SAMPLE_EVERY = 64
"""A batch's threshold is first looked for in every 64th row ..."""

SAMPLE_MARGIN = 1.25
"""... so low that this many times the latents needed are expected above it."""


class Active(NamedTuple):
    """Active latents of a batch, ordered by row.

    Attributes:
        starts: `[B + 1]` int64, where each row begins among the others.
        columns: `[N]` int32, latents.
        values: `[N]`, pre-activations, all above 0.
        scores: `[N]`, what they were chosen by.
    """

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    scores: np.ndarray

    def only(self, kept: np.ndarray) -> "Active":
        """Return those that a mask `[N]` keeps."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return Active(before[self.starts], self.columns[kept], self.values[kept], self.scores[kept])


class SparseGradients:
    """Losses and gradients of one autoencoder's batches; holds threads.

    Args:
        settings: resolved settings of an architecture with a selection.
        threads: number of threads; None: of the cores that the process may use.
    """

    def __init__(self, settings: SaeSettings, threads: int | None = None):
        self._settings = settings
        count = threads or len(os.sched_getaffinity(0))
        self._pool = concurrent.futures.ThreadPoolExecutor(count, "sae-gradients")
        self._blas = threadpoolctl.ThreadpoolController()

    def __call__(
        self, params: Params, rows: np.ndarray, targets: np.ndarray | None, dead: np.ndarray
    ) -> Outcome:
        """Return losses and gradients of a batch; see `dense_gradients.gradients`."""
        with self._blas.limit(limits=1, user_api="blas"):  # one thread for each chunk
            return _Step(self._settings, self._pool, params, rows, targets).outcome(dead)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class _Step:
    """One batch's losses and gradients."""

    def __init__(
        self,
        settings: SaeSettings,
        pool: concurrent.futures.Executor,
        params: Params,
        rows: np.ndarray,
        targets: np.ndarray | None,
    ):
        self.settings, self.pool = settings, pool
        self.encoder, self.decoder = params["encoder"], params["decoder"]
        self.b_enc, self.b_dec = params["b_enc"], params["b_dec"]
        self.subtracts = targets is None
        self.inputs = rows - self.b_dec if targets is None else rows
        self.wanted = rows if targets is None else targets
        self.norms: np.ndarray | None = None
        if settings.rescale_by_decoder_norm:
            self.norms = np.sqrt(np.einsum("ij,ij->i", self.decoder, self.decoder))
        nested = ARCHITECTURES[settings.architecture].nested
        self.widths = (settings.matryoshka_widths if nested else None) or [len(self.decoder)]
        # of each width: the gradient of its loss and all wider ones by the sum of its latents
        self.errors = [np.empty_like(self.wanted) for _ in self.widths]

    def outcome(self, dead: np.ndarray) -> Outcome:
        active = self.chosen()
        losses, of_values = self.decode(active)
        found = self.products(active, of_values)
        if self.settings.aux_coefficient:
            losses["aux"] = self.aux(np.flatnonzero(dead), found) if dead.any() else 0.0
        found["b_dec"] = self.errors[0].sum(0)
        if self.subtracts:
            found["b_dec"] -= found["b_enc"] @ self.encoder
        fired = np.bincount(active.columns, minlength=len(self.encoder)).astype(np.int32)
        smallest = active.scores.min() if len(active.scores) else np.inf
        return Outcome(losses, found, fired, smallest)

    def each(self, work: Callable[[int, int], Any], total: int, size: int) -> list[Any]:
        """Return the results of `work(begin, end)` for chunks, in order, run on the threads."""
        return list(self.pool.map(lambda a: work(a, min(a + size, total)), range(0, total, size)))

    def pre(self, begin: int, end: int) -> np.ndarray:
        """Return pre-activations of rows, `[end - begin, d_sae]`."""
        result = self.inputs[begin:end] @ self.encoder.T
        result += self.b_enc
        return result

    def scored(self, values: np.ndarray, columns: Any = slice(None)) -> np.ndarray:
        return values if self.norms is None else values * self.norms[columns]

    # Which latents are active.

    def chosen(self) -> Active:
        if ARCHITECTURES[self.settings.architecture].selection == "row":
            return _joined(self.each(self.largest_of_rows, len(self.inputs), CHUNK_ROWS))
        count = self.settings.k * len(self.inputs)
        bound = self.expected_bound()
        candidates = self.above(bound)
        if len(candidates.scores) < count and bound > 0:  # those rows were not like the others
            candidates = self.above(0.0)
        surplus = len(candidates.scores) - count
        if surplus <= 0:
            return candidates
        least = np.partition(candidates.scores, surplus)[surplus]
        return candidates.only(candidates.scores >= least)

    def expected_bound(self) -> float:
        """Return a score above which a batch likely has a few more latents than it needs."""
        sample = self.inputs[::SAMPLE_EVERY] @ self.encoder.T
        sample += self.b_enc
        scores = self.scored(sample).ravel()
        count = min(int(SAMPLE_MARGIN * self.settings.k * len(sample)) + 1, len(scores))
        return max(0.0, float(np.partition(scores, -count)[-count]))

    def above(self, bound: float) -> Active:
        """Return the latents with scores above a bound, and those a little below it."""
        bounds = np.full(len(self.encoder), bound, self.inputs.dtype)
        if self.norms is not None:
            bounds /= np.maximum(self.norms, np.finfo(self.norms.dtype).tiny)
            bounds *= 1 - 1e-5  # the quotient is rounded; scores are compared exactly later

        def chunk(begin: int, end: int) -> Active:
            pre = self.pre(begin, end)
            return self.active_at(pre, np.flatnonzero(pre > bounds))

        return _joined(self.each(chunk, len(self.inputs), CHUNK_ROWS))

    def largest_of_rows(self, begin: int, end: int) -> Active:
        pre = self.pre(begin, end)
        k = self.settings.k
        columns = np.argpartition(self.scored(pre), -k, axis=1)[:, -k:]
        columns.sort(axis=1)
        places = (columns + np.arange(len(pre))[:, None] * pre.shape[1]).ravel()
        return self.active_at(pre, places[pre.ravel()[places] > 0])

    def active_at(self, pre: np.ndarray, places: np.ndarray) -> Active:
        """Return the latents at places of the flattened pre-activations, in ascending order."""
        columns = (places % pre.shape[1]).astype(np.int32)
        values = pre.ravel()[places]
        starts = np.searchsorted(places, np.arange(0, pre.size + 1, pre.shape[1]))
        return Active(starts, columns, values, self.scored(values, columns))

    # Losses, and the gradient of each active latent.

    def decode(self, active: Active) -> tuple[dict[str, Any], np.ndarray]:
        """Fill `errors`; return the losses, and the gradient by each active latent, `[N]`."""
        of_values = np.empty_like(active.values)
        work = functools.partial(self.decode_chunk, active, of_values)
        parts = np.array(self.each(work, len(self.wanted), CHUNK_ROWS))
        names = [f"mse_{width}" for width in self.widths[:-1]] + ["mse"]
        losses = parts.sum(0) / len(self.wanted)
        return dict(zip(names, losses.tolist(), strict=True)), of_values

    def decode_chunk(
        self, active: Active, of_values: np.ndarray, begin: int, end: int
    ) -> list[float]:
        first, last = int(active.starts[begin]), int(active.starts[end])
        columns, values = active.columns[first:last], active.values[first:last]
        starts = active.starts[begin : end + 1] - first
        squares, lower = [], 0
        reconstruction: Any = self.b_dec
        for width, error in zip(self.widths, self.errors, strict=True):
            part = values
            if len(self.widths) > 1:
                part = np.where((columns >= lower) & (columns < width), values, 0)
            shape = (end - begin, len(self.decoder))
            latents = scipy.sparse.csr_matrix((part, columns, starts), shape=shape)
            reconstruction = latents @ self.decoder + reconstruction
            difference = np.subtract(reconstruction, self.wanted[begin:end], out=error[begin:end])
            squares.append(float(np.vdot(difference, difference)))
            difference *= 2 / len(self.wanted)
            lower = width
        for narrow, wide in zip(self.errors[-2::-1], self.errors[:0:-1], strict=True):
            narrow[begin:end] += wide[begin:end]
        levels = np.searchsorted(self.widths, columns, side="right")
        rows = np.repeat(np.arange(begin, end), np.diff(starts))
        for a in range(0, end - begin, GATHER_ROWS):
            span = slice(starts[a], starts[min(a + GATHER_ROWS, end - begin)])
            of_rows = self.errors[0][rows[span]]
            for level in range(1, len(self.errors)):
                here = levels[span] == level
                of_rows[here] = self.errors[level][rows[span][here]]
            of_values[first:last][span] = np.einsum(
                "ij,ij->i", self.decoder[columns[span]], of_rows
            )
        return squares

    # Gradients of the parameters.

    def products(self, active: Active, of_values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the gradients of encoder, decoder and `b_enc` without the loss of dead latents."""
        count, dtype = len(self.encoder), self.inputs.dtype
        by_row: Any = scipy.sparse.csr_matrix(
            (np.arange(len(active.values)), active.columns, active.starts),
            shape=(len(self.inputs), count),
        )
        by_latent = by_row.tocsc()
        order, rows, starts = by_latent.data, by_latent.indices, by_latent.indptr
        values, of_values = active.values[order], of_values[order]
        of_encoder, of_decoder = np.empty_like(self.encoder), np.empty_like(self.decoder)
        of_bias = np.empty(count, dtype)

        def chunk(level: int, begin: int, end: int) -> None:
            span = slice(starts[begin], starts[end])
            where = (rows[span], starts[begin : end + 1] - starts[begin])
            shape = (end - begin, len(self.inputs))
            part = scipy.sparse.csr_matrix((values[span], *where), shape=shape)
            of_decoder[begin:end] = part @ self.errors[level]
            part = scipy.sparse.csr_matrix((of_values[span], *where), shape=shape)
            of_encoder[begin:end] = part @ self.inputs
            of_bias[begin:end] = np.asarray(part.sum(1)).ravel()

        spans = [
            (level, begin, min(begin + LATENT_RANGE, end))
            for level, (start, end) in enumerate(zip([0, *self.widths], self.widths, strict=False))
            for begin in range(start, end, LATENT_RANGE)
        ]
        list(self.pool.map(lambda span: chunk(*span), spans))
        return {"encoder": of_encoder, "decoder": of_decoder, "b_enc": of_bias}

    def aux(self, dead: np.ndarray, found: dict[str, np.ndarray]) -> float:
        """Return the loss of dead latents, and add its gradients to those found.

        Args:
            dead: `[D]` int64, latents.
            found: gradients of encoder, decoder and `b_enc`.
        """
        rows, width = self.wanted.shape
        encoder, decoder = self.encoder[dead], self.decoder[dead]
        residual = self.errors[-1] * (-rows / 2)
        weight = self.settings.aux_coefficient or 0.0
        if self.settings.aux_normalized:
            weight /= float(((residual - residual.mean(0)) ** 2).sum(-1).mean())
        else:
            weight *= min(len(dead) / (width // 2), 1.0)
        count = min(width // 2, len(dead))

        def chunk(begin: int, end: int) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
            pre = self.inputs[begin:end] @ encoder.T + self.b_enc[dead]
            if count < len(dead):
                scores = self.scored(pre, dead)
                least = np.partition(scores, -count, axis=1)[:, -count, None]
                kept = scores >= least
            else:
                kept = np.ones(pre.shape, bool)
            latents = np.where(kept, pre, 0)
            error = latents @ decoder - residual[begin:end]
            square = float(np.vdot(error, error))
            error *= 2 * weight / rows
            of_latents = np.where(kept, error @ decoder.T, 0)
            return (
                square,
                of_latents.T @ self.inputs[begin:end],
                latents.T @ error,
                of_latents.sum(0),
            )

        parts = self.each(chunk, rows, -(-rows // AUX_CHUNKS))
        for _, of_encoder, of_decoder, of_bias in parts:
            found["encoder"][dead] += of_encoder
            found["decoder"][dead] += of_decoder
            found["b_enc"][dead] += of_bias
        return weight * sum(part[0] for part in parts) / rows


def _joined(parts: list[Active]) -> Active:
    """Return the active latents of consecutive chunks of rows as those of all rows."""
    ends = np.cumsum([0, *(part.starts[-1] for part in parts)])
    starts = [part.starts[:-1] + end for part, end in zip(parts, ends, strict=False)]
    return Active(
        np.concatenate([*starts, ends[-1:]]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )
