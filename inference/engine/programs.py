"""One batch on the mesh: prefill, decoding with a KV cache and capture, in one compiled program.

Prompts are padded on the right, so prefill is plain causal attention and no real token ever sees
padding. All sequences of a batch write their new keys to the same slot; the slots after a short
prompt stay masked. A sequence that has ended goes on computing until every sequence of its device
has ended; those results are never read.

If the mesh's model axis is 1, every device runs its own loop under `jax.shard_map`, without any
collective, and stops when its own sequences have ended. Otherwise XLA partitions the program.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from inference.engine.token_choice import (
    choose_tokens,
    occurring_tokens,
    penalise_repetition,
    step_keys,
    with_tokens,
)
from qwen_hooks import KVCache, QwenModelWithActivations
from qwen_hooks.interventions import Interventions
from qwen_hooks.model import Params, forward, unembed


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings that a generation program is compiled for.

    Attributes:
        max_new_tokens: most generated tokens; 0 runs the prompt and predicts nothing.
        capture_generated: whether activations of generated tokens are captured.
        stop_token_ids: tokens that end a sequence.
        temperature: temperature of sampling; 0 for the likeliest token.
        top_p: probability of the nucleus of sampling.
        repetition_penalty: penalty for tokens that have occurred; 1: none.
        seed: seed of sampling.
    """

    max_new_tokens: int
    capture_generated: bool = True
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


@flax.struct.dataclass
class BatchInput:
    """The prompts of a batch.

    Attributes:
        input_ids: int32 `[B, S]`, padded on the right.
        lengths: int32 `[B]`, 0 for a dummy sequence.
        numbers: int32 `[B]`, each sample's number, part of its sampling keys.
        rows: int32 `[B, R]`, captured slots of the prompt, in any order; if a token is predicted,
            the last of them is the prompt's last token.
        starts: int32 `[B, S]`, for packed sequences: the first slot of each slot's document. A
            document's tokens see only that document; nothing is generated.
    """

    input_ids: Int[Array, "B S"]
    lengths: Int[Array, " B"]
    numbers: Int[Array, " B"]
    rows: Int[Array, "B R"]
    starts: Int[Array, "B S"] | None = None


@flax.struct.dataclass
class BatchOutput:
    """The output of a batch, still on the devices.

    Attributes:
        prompt_rows: `[B, R, width]` of each hook point, with the values of all heads concatenated.
        generated_rows: `[T, B, width]` of each hook point, for the generated tokens that ran: all
            but the last. T is `max_new_tokens - 1`, or 0 if they are not captured.
        tokens: int32 `[B, max_new_tokens]`, generated token ids.
        counts: int32 `[B]`, number of valid generated tokens, including a stop token.
    """

    prompt_rows: dict[str, Float[Array, "B R width"]]
    generated_rows: dict[str, Float[Array, "T B width"]]
    tokens: Int[Array, "B new"]
    counts: Int[Array, " B"]


@flax.struct.dataclass
class _LoopState:
    step: Int[Array, ""]
    ended: Bool[Array, " B"]
    cache: KVCache
    occurring: Bool[Array, "B V"] | None
    output: BatchOutput


def last_slots(lengths: Int[np.ndarray | Array, " B"]) -> Int[np.ndarray | Array, "B one"]:
    """Return the slots of the prompts' last tokens, in the form of `BatchInput.rows`."""
    return (lengths - 1).clip(0)[:, None]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every array of a `BatchInput`: sequences over the data axis."""
    return NamedSharding(mesh, P("data"))


@functools.partial(jax.jit, static_argnames=("model", "settings", "mesh"))
def generate_batch(
    model: QwenModelWithActivations,
    params: Params,
    batch: BatchInput,
    *,
    settings: GenerationSettings,
    mesh: Mesh,
    interventions: Interventions | None = None,
) -> BatchOutput:
    """Run a batch on the mesh.

    Args:
        model: the model, which captures its hook points.
        params: parameters, laid out by `qwen_hooks.sharding`.
        batch: the batch; `B` is a multiple of the mesh's data axis.
        settings: settings of generation.
        mesh: mesh with the axes `data` and `model`.
        interventions: interventions at prompt tokens and generated tokens; None: none.
    """
    run = functools.partial(_generate, model, settings=settings)
    if mesh.shape["model"] > 1:
        output = run(params, batch, interventions)
        # If the mesh spans hosts, the host that commits needs all rows.
        over = None if mesh.is_multi_process else "data"

        def lay(array: Array, spec: P) -> Array:
            return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

        return BatchOutput(
            prompt_rows={h: lay(rows, P(over)) for h, rows in output.prompt_rows.items()},
            generated_rows={h: lay(r, P(None, over)) for h, r in output.generated_rows.items()},
            tokens=lay(output.tokens, P(over)),
            counts=lay(output.counts, P(over)),
        )

    numbers, tree = jax.tree.flatten(interventions)

    def on_one_device(params: Params, batch: BatchInput, numbers: list[Array]) -> tuple[Any, ...]:
        output = run(params, batch, jax.tree.unflatten(tree, numbers))
        return output.prompt_rows, output.generated_rows, output.tokens, output.counts

    return BatchOutput(
        *jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(P(), P("data"), [] if interventions is None else interventions.specs()),
            out_specs=(P("data"), P(None, "data"), P("data"), P("data")),
            check_vma=False,  # the loop's carry starts from constants, which vary over no axis
        )(params, batch, numbers)
    )


def _generate(
    model: QwenModelWithActivations,
    params: Params,
    batch: BatchInput,
    interventions: Interventions | None,
    *,
    settings: GenerationSettings,
) -> BatchOutput:
    """Run the program on one device, or on all devices that XLA partitions it over."""
    size, slots = batch.input_ids.shape
    steps = max(1, settings.max_new_tokens)
    predicts = settings.max_new_tokens > 0
    positions = _prompt_positions(batch)
    with jax.named_scope("prefill"):
        prompt = forward(
            model,
            params,
            batch.input_ids,
            positions,
            num_layers=None if predicts else model.blocks_needed,
            rows=batch.rows,
            interventions=interventions,
            segments=batch.starts,
        )
    prompt_rows = {hook: _flat(values) for hook, values in prompt.activations.items()}
    wanted = prompt_rows if settings.capture_generated else {}
    generated_rows = {
        hook: jnp.zeros((steps - 1, size, values.shape[-1]), values.dtype)
        for hook, values in wanted.items()
    }
    if not predicts:
        return BatchOutput(
            prompt_rows=prompt_rows,
            generated_rows=generated_rows,
            tokens=jnp.zeros((size, 0), jnp.int32),
            counts=jnp.zeros(size, jnp.int32),
        )

    occurring = None
    if settings.repetition_penalty != 1:
        occurring = occurring_tokens(batch.input_ids, batch.lengths, model.config.vocab_size)
    first = _next_tokens(
        model, params, batch, interventions, settings, prompt.residual, 0, occurring
    )
    is_dummy = batch.lengths == 0
    if steps == 1:
        counts = jnp.where(is_dummy, 0, 1).astype(jnp.int32)
        return BatchOutput(
            prompt_rows=prompt_rows,
            generated_rows=generated_rows,
            tokens=first[:, None],
            counts=counts,
        )

    start = _LoopState(
        step=jnp.ones((), jnp.int32),
        ended=is_dummy | _stops(first, settings),
        cache=KVCache.from_prefill(prompt.keys_values, positions, capacity=slots + steps - 1),
        occurring=occurring,
        output=BatchOutput(
            prompt_rows={},
            generated_rows=generated_rows,
            tokens=jnp.zeros((size, steps), jnp.int32).at[:, 0].set(first),
            counts=jnp.where(is_dummy, 0, 1).astype(jnp.int32),
        ),
    )

    def goes_on(state: _LoopState) -> Bool[Array, ""]:
        return (state.step < steps) & ~jnp.all(state.ended)

    decode = functools.partial(_decode_step, model, params, batch, interventions, settings)
    with jax.named_scope("decode"):
        output = jax.lax.while_loop(goes_on, decode, start).output
    return output.replace(prompt_rows=prompt_rows)  # pyright: ignore[reportAttributeAccessIssue]


def _prompt_positions(batch: BatchInput) -> Int[Array, "B S"]:
    """Return the position of each slot's token within its prompt or document; -1 for padding."""
    size, slots = batch.input_ids.shape
    slot = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (size, slots))
    position = slot if batch.starts is None else slot - batch.starts
    return jnp.where(slot < batch.lengths[:, None], position, -1)


def _decode_step(
    model: QwenModelWithActivations,
    params: Params,
    batch: BatchInput,
    interventions: Interventions | None,
    settings: GenerationSettings,
    state: _LoopState,
) -> _LoopState:
    """Return the state after one decode step: the last token's rows, and the token after it."""
    output, step = state.output, state.step
    token = jax.lax.dynamic_slice_in_dim(output.tokens, step - 1, 1, axis=1)
    at = (batch.lengths - 1 + step)[:, None]
    now = forward(model, params, token, at, cache=state.cache, interventions=interventions)
    assert now.cache is not None
    occurring = state.occurring
    if occurring is not None:
        occurring = with_tokens(occurring, token[:, 0])
    chosen = _next_tokens(
        model, params, batch, interventions, settings, now.residual, step, occurring
    )
    rows = {hook: _flat(values)[:, 0] for hook, values in now.activations.items()}
    return _LoopState(
        step=step + 1,
        ended=state.ended | _stops(chosen, settings),
        cache=now.cache,
        occurring=occurring,
        output=BatchOutput(
            prompt_rows={},
            generated_rows={
                hook: jax.lax.dynamic_update_index_in_dim(kept, rows[hook], step - 1, axis=0)
                for hook, kept in output.generated_rows.items()
            },
            tokens=jax.lax.dynamic_update_index_in_dim(output.tokens, chosen, step, axis=1),
            counts=output.counts + jnp.where(state.ended, 0, 1).astype(jnp.int32),
        ),
    )


def _next_tokens(
    model: QwenModelWithActivations,
    params: Params,
    batch: BatchInput,
    interventions: Interventions | None,
    settings: GenerationSettings,
    residual: Float[Array, "B R D"],
    step: int | Array,
    occurring: Bool[Array, "B V"] | None,
) -> Int[Array, " B"]:
    """Return the tokens that generation step `step` chooses, from the last slot's residual."""
    at = (batch.lengths - 1 + step)[:, None]
    logits = unembed(model, params, residual[:, -1:], interventions, at)[:, 0]
    if occurring is not None:
        logits = penalise_repetition(logits, occurring, settings.repetition_penalty)
    keys = step_keys(settings.seed, batch.numbers, step)
    return choose_tokens(logits, keys, settings.temperature, settings.top_p)


def _flat(values: Float[Array, "B R *shape"]) -> Float[Array, "B R width"]:
    """Return the values with all heads concatenated."""
    return values.reshape(*values.shape[:2], -1)


def _stops(tokens: Int[Array, " B"], settings: GenerationSettings) -> Bool[Array, " B"]:
    stop = np.array(settings.stop_token_ids, np.int32)
    return jnp.any(tokens[:, None] == stop[None, :], axis=-1)
