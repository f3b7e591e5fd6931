"""The tokens of a few samples of a run, with the norms of their rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.maintenance.committed_files import read_batch, read_outputs
from extraction.run.identity import RunIdentity
from extraction.run.records import CommitRecord
from extraction.run.rows import UNKNOWN, RowBlock
from extraction.run.statistics import row_norms
from extraction.storage import Storage

SAMPLES = 4
HOOK_POINTS = 6
"""Most hook points whose norms are shown."""

TOKENS = 200
"""Most tokens of a sample that are shown."""

BEFORE = 40
"""Tokens shown before the first row of a sample whose rows stand far behind its beginning."""

LARGEST_READ = 256 << 20
"""Bytes; hook points are left out beyond it, except the first."""

Key = tuple[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownToken:
    """A token of a sample.

    Attributes:
        position: position of the token; -1 if it is not known.
        token_id: id of the token; -1 if it is not known.
        step: 0 for a prompt token, t for the t-th generated one.
        norms: norm of its row at each hook point shown; None if it has no row.
    """

    position: int
    token_id: int
    step: int
    norms: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample.

    Attributes:
        task_id: id of its task.
        sample_idx: number of the sample within the task.
        prompt: text of the prompt; None if the run does not record it.
        text: generated text; None if there is none.
        finish_reason: `stop` or `length`; None if the run does not record it.
        tokens: a part of its tokens without a gap, or its rows' where output lines are missing.
        tokens_before: number of tokens before that part.
        tokens_after: number of tokens after that part.
        rows: number of its rows.
    """

    task_id: str
    sample_idx: int
    prompt: str | None
    text: str | None
    finish_reason: str | None
    tokens: tuple[ShownToken, ...]
    tokens_before: int
    tokens_after: int
    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Some samples of a batch.

    Attributes:
        hook_points: hook points whose norms are shown.
        samples: the samples.
        problem: why samples cannot be shown; None if they are.
    """

    hook_points: tuple[str, ...] = ()
    samples: tuple[ShownSample, ...] = ()
    problem: str | None = None


def read_samples(storage: Storage, identity: RunIdentity, record: CommitRecord | None) -> Samples:
    """Return the first samples of a batch that have rows.

    Args:
        storage: storage of the run.
        identity: identity of the run.
        record: commit record of a batch with rows; None: there is none.
    """
    if record is None:
        return Samples()
    try:
        return _samples(storage, identity, record)
    except CorruptBatchError as error:
        return Samples(problem=str(error))


def _samples(storage: Storage, identity: RunIdentity, record: CommitRecord) -> Samples:
    hooks = _affordable([hook for hook in identity.hook_points if hook in record.files], record)
    norms, keys = [], None
    for hook in hooks:
        batch = read_batch(storage, identity, record, hook, with_sha256=False)
        if keys is None:
            keys = batch.keys
            wanted, numbers = _first_samples(keys)
        norms.append(row_norms(batch.block().activations[hook][numbers]))
    assert keys is not None
    lines: dict[Key, Mapping[str, Any]] = {}
    if record.outputs is not None:
        told = read_outputs(storage, record.outputs)
        lines = {(line["task_id"], line["sample_idx"]): line for line in told}
    table = np.stack(norms, axis=1)
    samples = []
    for key in wanted:
        mine = np.array(
            [(keys.task_ids[i], int(keys.sample_idx[i])) == key for i in numbers], dtype=bool
        )
        samples.append(_sample(key, keys, numbers[mine], table[mine], lines.get(key, {})))
    return Samples(hook_points=tuple(hooks), samples=tuple(samples))


def _affordable(hooks: list[str], record: CommitRecord) -> list[str]:
    """Return hook points from the first to the last, as many as may be read."""
    places = np.unique(np.linspace(0, len(hooks) - 1, min(len(hooks), HOOK_POINTS)).round())
    chosen, left = [], LARGEST_READ
    for hook in (hooks[int(place)] for place in places):
        left -= record.files[hook].bytes
        if left >= 0 or not chosen:
            chosen.append(hook)
    return chosen


def _first_samples(keys: RowBlock) -> tuple[list[Key], np.ndarray]:
    """Return the keys of the first samples, and the numbers of their rows."""
    wanted: dict[Key, None] = {}
    numbers = []
    for i, key in enumerate(zip(keys.task_ids.tolist(), keys.sample_idx.tolist(), strict=True)):
        if key in wanted or len(wanted) < SAMPLES:
            wanted[key] = None
            numbers.append(i)
    return list(wanted), np.array(numbers)


def _sample(
    key: Key, keys: RowBlock, numbers: np.ndarray, norms: np.ndarray, line: Mapping[str, Any]
) -> ShownSample:
    order = np.argsort(keys.position[numbers], kind="stable")
    rows = [
        ShownToken(
            position=int(keys.position[i]),
            token_id=int(keys.token_id[i]),
            step=int(keys.step[i]),
            norms=tuple(norms[n].tolist()),
        )
        for n, i in zip(order.tolist(), numbers[order].tolist(), strict=True)
    ]
    tokens = _with_others(rows, line)
    first = next((n for n, token in enumerate(tokens) if token.norms is not None), 0)
    start = 0 if len(rows) and _end_of_rows(tokens) <= TOKENS else max(0, first - BEFORE)
    start = max(0, min(start, len(tokens) - TOKENS))
    shown = tokens[start : start + TOKENS]
    return ShownSample(
        task_id=key[0],
        sample_idx=key[1],
        prompt=_text(line.get("prompt")),
        text=_text(line.get("text")),
        finish_reason=_text(line.get("finish_reason")),
        tokens=tuple(shown),
        tokens_before=start,
        tokens_after=len(tokens) - start - len(shown),
        rows=len(rows),
    )


def _with_others(rows: Sequence[ShownToken], line: Mapping[str, Any]) -> list[ShownToken]:
    """Return all tokens of the sample, if its output line has them; else those of its rows."""
    ids = token_ids_of(line)
    if ids is None:
        return list(rows)
    prompt_tokens = len(line["prompt_token_ids"])
    kept = {row.position: row for row in rows}
    if UNKNOWN in kept or not all(position < len(ids) for position in kept):
        return list(rows)
    return [
        kept.get(
            position,
            ShownToken(
                position=position,
                token_id=token_id,
                step=max(0, position - prompt_tokens + 1),
                norms=None,
            ),
        )
        for position, token_id in enumerate(ids)
    ]


def token_ids_of(line: Mapping[str, Any]) -> list[int] | None:
    """Return the token ids of a sample, by position; None if its output line does not have them."""
    prompt, generated = line.get("prompt_token_ids"), line.get("generated_token_ids")
    return [*prompt, *generated] if _are_ids(prompt) and _are_ids(generated) else None


def _end_of_rows(tokens: Sequence[ShownToken]) -> int:
    return max(n for n, token in enumerate(tokens) if token.norms is not None) + 1


def _are_ids(values: Any) -> TypeGuard[list[int]]:
    return type(values) is list and all(type(value) is int for value in values)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
