"""One batch on the mesh: prefill, cached decoding and capture, in one compiled program.

Prompts are padded on the right, so prefill is plain causal attention and no real token ever sees
padding. All rows of a batch write their new keys to the same slot; the slots behind a short
prompt stay hidden. A row that has ended goes on computing until every row of its device has; what
it computes then is never read.

Where the mesh's model axis is 1, every device runs its own loop under `jax.shard_map`, with no
collective at all, and stops when its own rows have ended. Otherwise XLA partitions the program.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from inference.token_choice import choose_tokens, step_keys
from qwen_hooks import KVCache, QwenModelWithActivations
from qwen_hooks.model import ForwardOutput, Params, forward, unembed


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What a generation program is compiled for.

    Attributes:
        max_new_tokens: generated at most; 0 runs the prompt and predicts nothing.
        stop_token_ids: end a row.
        temperature: 0 for the likeliest token.
        top_p: nucleus.
        seed: of sampling.
    """

    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@flax.struct.dataclass
class BatchInput:
    """The prompts of a batch.

    Attributes:
        input_ids: int32 `[B, S]`, padded on the right.
        lengths: int32 `[B]`, 0 for a dummy row.
        numbers: int32 `[B]`, each sample's number, part of its sampling keys.
    """

    input_ids: Int[Array, "B S"]
    lengths: Int[Array, " B"]
    numbers: Int[Array, " B"]


@flax.struct.dataclass
class BatchOutput:
    """What a batch gave; still on the devices.

    Attributes:
        rows: `[steps, layers, B, D]`, layers ascending; step t is the last token before generated
            token t + 1.
        tokens: int32 `[B, max_new_tokens]`, generated.
        counts: int32 `[B]`, how many of them count, a stop token included.
    """

    rows: Float[Array, "T layers B D"]
    tokens: Int[Array, "B new"]
    counts: Int[Array, " B"]


@flax.struct.dataclass
class _LoopState:
    step: Int[Array, ""]
    ended: Bool[Array, " B"]
    cache: KVCache
    output: BatchOutput


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a `BatchInput`: rows over the data axis."""
    return NamedSharding(mesh, P("data"))


@functools.partial(jax.jit, static_argnames=("model", "settings", "mesh"))
def generate_batch(
    model: QwenModelWithActivations,
    params: Params,
    batch: BatchInput,
    *,
    settings: GenerationSettings,
    mesh: Mesh,
) -> BatchOutput:
    """Runs a batch over the mesh.

    Args:
        model: captures its hook points.
        params: laid out as `qwen_hooks.sharding` says.
        batch: `B` a multiple of the mesh's data axis.
        settings: of generation.
        mesh: with the axes `data` and `model`.
    """
    run = functools.partial(_generate, model, settings=settings)
    if mesh.shape["model"] > 1:
        output = run(params, batch)
        # Where the mesh spans hosts, the one that writes needs all rows.
        over = None if mesh.is_multi_process else "data"

        def lay(array: Array, spec: P) -> Array:
            return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

        return BatchOutput(
            rows=lay(output.rows, P(None, None, over)),
            tokens=lay(output.tokens, P(over)),
            counts=lay(output.counts, P(over)),
        )

    def on_one_device(params: Params, batch: BatchInput) -> tuple[Array, Array, Array]:
        output = run(params, batch)
        return output.rows, output.tokens, output.counts

    return BatchOutput(
        *jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=(P(None, None, "data"), P("data"), P("data")),
            check_vma=False,  # the loop's carry starts from constants, which vary over no axis
        )(params, batch)
    )


def _generate(
    model: QwenModelWithActivations,
    params: Params,
    batch: BatchInput,
    *,
    settings: GenerationSettings,
) -> BatchOutput:
    """The program of one device, or of all that XLA partitions it over."""
    size, slots = batch.input_ids.shape
    steps = max(1, settings.max_new_tokens)
    slot = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (size, slots))
    positions = jnp.where(slot < batch.lengths[:, None], slot, -1)
    last = jnp.maximum(batch.lengths - 1, 0)

    with jax.named_scope("prefill"):
        predicts = settings.max_new_tokens > 0
        num_layers = None if predicts else model.blocks_needed
        prompt = forward(
            model, params, batch.input_ids, positions, num_layers=num_layers, rows=last[:, None]
        )
    first_rows = _stack_rows(prompt)
    if not predicts:
        return BatchOutput(
            rows=first_rows[None],
            tokens=jnp.zeros((size, 0), jnp.int32),
            counts=jnp.zeros(size, jnp.int32),
        )

    def choose(residual: Float[Array, "B one D"], step: int | Array) -> Int[Array, " B"]:
        logits = unembed(model, params, residual[:, 0])
        keys = step_keys(settings.seed, batch.numbers, step)
        return choose_tokens(logits, keys, settings.temperature, settings.top_p)

    first = choose(prompt.residual, 0)
    is_dummy = batch.lengths == 0
    if steps == 1:
        counts = jnp.where(is_dummy, 0, 1).astype(jnp.int32)
        return BatchOutput(rows=first_rows[None], tokens=first[:, None], counts=counts)

    shape = (steps, *first_rows.shape)
    start = _LoopState(
        step=jnp.ones((), jnp.int32),
        ended=is_dummy | _stops(first, settings),
        cache=KVCache.from_prefill(prompt.keys_values, positions, capacity=slots + steps - 1),
        output=BatchOutput(
            rows=jnp.zeros(shape, first_rows.dtype).at[0].set(first_rows),
            tokens=jnp.zeros((size, steps), jnp.int32).at[:, 0].set(first),
            counts=jnp.where(is_dummy, 0, 1).astype(jnp.int32),
        ),
    )

    def goes_on(state: _LoopState) -> Bool[Array, ""]:
        return (state.step < steps) & ~jnp.all(state.ended)

    def decode(state: _LoopState) -> _LoopState:
        output, step = state.output, state.step
        token = jax.lax.dynamic_slice_in_dim(output.tokens, step - 1, 1, axis=1)
        at = (batch.lengths - 1 + step)[:, None]
        now = forward(model, params, token, at, cache=state.cache)
        assert now.cache is not None
        chosen = choose(now.residual, step)
        rows = _stack_rows(now)
        return _LoopState(
            step=step + 1,
            ended=state.ended | _stops(chosen, settings),
            cache=now.cache,
            output=BatchOutput(
                rows=jax.lax.dynamic_update_index_in_dim(output.rows, rows, step, axis=0),
                tokens=jax.lax.dynamic_update_index_in_dim(output.tokens, chosen, step, axis=1),
                counts=output.counts + jnp.where(state.ended, 0, 1).astype(jnp.int32),
            ),
        )

    with jax.named_scope("decode"):
        return jax.lax.while_loop(goes_on, decode, start).output


def _stack_rows(output: ForwardOutput) -> Float[Array, "layers B D"]:
    rows = [values[:, 0] for values in output.activations.values()]
    # Capturing nothing is for measuring what capturing costs.
    return jnp.stack(rows) if rows else jnp.zeros((0, *output.residual[:, 0].shape))


def _stops(tokens: Int[Array, " B"], settings: GenerationSettings) -> Bool[Array, " B"]:
    stop = np.array(settings.stop_token_ids, np.int32)
    return jnp.any(tokens[:, None] == stop[None, :], axis=-1)
