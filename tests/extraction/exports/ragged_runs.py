"""Runs of samples with different numbers of rows, whose every value is known without reading.

Hook points differ in width. Rows of a sample may lie in several batches, in any order.
"""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np

from extraction.run.identity import RunIdentity, begin
from extraction.run.rows import RowBlock, text_column
from extraction.storage import Storage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata

WIDTHS = {"layer_6": 4, "layers.6.mlp.neurons": 7}
HOOKS = tuple(WIDTHS)
MODEL = "Qwen/Qwen2.5-0.5B"


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownSample:
    """A sample; it has rows at `positions`, a skipped one none."""

    task_id: str
    sample_idx: int
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def key(self) -> tuple[str, int]:
        return self.task_id, self.sample_idx

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.generated


EVERY = KnownSample(
    task_id="tâsk",
    sample_idx=0,
    prompt=(11, 12, 13, 14),
    generated=(21, 22),
    positions=(0, 1, 2, 3, 4),
)
LAST = KnownSample(task_id="tâsk", sample_idx=1, prompt=(11, 12), generated=(23,), positions=(1,))
SKIPPED = KnownSample(task_id="long", sample_idx=0, prompt=(31,) * 20, generated=(), positions=())
GENERATED = KnownSample(
    task_id="long", sample_idx=3, prompt=(41, 42, 0), generated=(24, 25, 26), positions=(2, 3, 4)
)
WITH_ROWS = (EVERY, GENERATED, LAST)
"""In the order of their first rows."""

BATCHES = (
    ((EVERY, 0), (EVERY, 2), (GENERATED, 4), (EVERY, 1)),
    ((GENERATED, 3), (LAST, 1), (EVERY, 4), (EVERY, 3), (GENERATED, 2)),
)
ROWS = sum(map(len, BATCHES))
LINES = ((EVERY, SKIPPED), (GENERATED, LAST))


def known_row(sample: KnownSample, position: int, hook: str, dtype: str = "float32") -> np.ndarray:
    """`[width]` float32, rounded as it is stored."""
    seed = [*sample.task_id.encode(), sample.sample_idx, 1 + position, len(hook)]
    row = np.random.default_rng(seed).standard_normal(WIDTHS[hook]).astype(np.float32)
    return row.astype(ml_dtypes.bfloat16).astype(np.float32) if dtype == "bfloat16" else row


def write_ragged_run(
    place: Path | Storage,
    file_format: str = "safetensors",
    dtype: str = "float32",
    *,
    batches=BATCHES,
    lines=LINES,
    hooks=HOOKS,
    planned: int | None = None,
) -> Storage:
    """A run of these rows, with the output lines of these samples; None: without any."""
    storage = LocalStorage(place) if isinstance(place, Path) else place
    identity = RunIdentity.new(
        model_name=MODEL,
        hook_points=hooks,
        hidden_dim=WIDTHS["layer_6"],
        file_format=file_format,
        dtype=dtype,
        planned_batches=len(batches) if planned is None else planned,
    )
    begin(storage, identity)
    committer = Committer(storage, hooks, file_format, dtype)
    for number, rows in enumerate(batches):
        told = None if lines is None else [_line(sample) for sample in lines[number]]
        committer.commit(1 + number, _block(rows, hooks), told)
    write_metadata(storage)
    return storage


def _block(rows, hooks) -> RowBlock:
    position = np.array([position for _, position in rows], np.int32)
    prompts = np.array([len(sample.prompt) for sample, _ in rows], np.int32)
    tokens = [sample.tokens[place] if place >= 0 else -1 for sample, place in rows]
    return RowBlock(
        task_ids=text_column([sample.task_id for sample, _ in rows]),
        sample_idx=np.array([sample.sample_idx for sample, _ in rows], np.int64),
        step=np.maximum(position - prompts + 1, 0).astype(np.int32),
        position=position,
        token_id=np.array(tokens, np.int32),
        timestamps=text_column(["2025-01-15T10:30:00+00:00"] * len(rows)),
        activations={hook: np.stack([known_row(*row, hook) for row in rows]) for hook in hooks},
    )


def _line(sample: KnownSample) -> dict:
    return {
        "task_id": sample.task_id,
        "sample_idx": sample.sample_idx,
        "prompt": "a prompt",
        "prompt_token_ids": list(sample.prompt),
        "generated_token_ids": list(sample.generated),
        "text": "text",
        "finish_reason": "length" if sample.positions else "skipped",
    }


def entries(folder: Path) -> set[str]:
    """Names in a folder, hidden ones too."""
    return {path.name for path in folder.iterdir()}
