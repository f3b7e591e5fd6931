"""A run with all that a report tells: sinks, zeros, rows that are not finite, skipped samples."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from extraction.run.identity import RunIdentity, begin
from extraction.run.rows import RowBlock
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata

WIDTHS = {"embed_tokens": 8, "layer_0": 8, "layer_3": 8, "layers.3.mlp.neurons": 12}
UNITS, SAMPLES, TOKENS = 3, 5, 40
"""Samples of a unit, and tokens of a sample."""

CONFIG = {"model_type": "qwen2", "num_hidden_layers": 6, "hidden_size": 8, "vocab_size": 500}
SETTINGS = {"dataset": "texts.jsonl", "positions": ["all"], "max_new_tokens": 0, "top_p": 1.0}


@dataclasses.dataclass(frozen=True)
class Written:
    """A run and all that was written to it."""

    storage: LocalStorage
    rows: dict[str, np.ndarray]
    keys: list[tuple[str, int, int, int]]
    """Task, sample, position and token of each row."""
    lines: list[dict[str, Any]]

    def finite(self, hook: str) -> np.ndarray:
        """float64 rows whose numbers are all finite."""
        rows = self.rows[hook].astype(np.float64)
        return rows[np.isfinite(rows).all(axis=1)]


def write(
    folder: Path,
    file_format: str = "safetensors",
    *,
    texts: tuple[str, ...] = (),
    scale: float = 1.0,
    **changes: Any,
) -> Written:
    """Write the run.

    Args:
        folder: its folder.
        file_format: format of its files.
        texts: prompts and, hence, task ids of the first samples.
        scale: factor of all rows.
        changes: fields of the identity.
    """
    storage = LocalStorage(folder)
    identity = RunIdentity.new(
        **{
            "model_name": "Qwen/Qwen2.5-0.5B",
            "hook_points": tuple(WIDTHS),
            "hidden_dim": 8,
            "file_format": file_format,
            "planned_batches": UNITS,
            "fingerprint": {"config": CONFIG},
            "run": {"settings": SETTINGS, "versions": {"jax": "0.10.2"}, "platform": "cpu"},
        }
        | changes
    )
    begin(storage, identity)
    committer = Committer(storage, tuple(WIDTHS), file_format)
    parts, lines = [], []
    for unit in range(UNITS):
        block, told = _unit(unit, texts if unit == 0 else (), scale)
        committer.commit(unit + 1, block, told)
        parts.append(block)
        lines += told
    write_metadata(storage)
    whole = RowBlock.concatenate(parts)
    columns = (whole.task_ids, whole.sample_idx, whole.position, whole.token_id)
    return Written(
        storage,
        dict(whole.activations),
        list(zip(*(column.tolist() for column in columns), strict=True)),
        lines,
    )


def _unit(unit: int, texts: tuple[str, ...], scale: float) -> tuple[RowBlock, list[dict[str, Any]]]:
    """Every second token has a row; the first of a sample is a sink; the last sample is skipped."""
    random = np.random.default_rng(unit)
    tasks, samples, positions, tokens, lines = [], [], [], [], []
    for sample in range(SAMPLES):
        task = texts[sample] if sample < len(texts) else f"task_{unit}"
        ids = random.integers(0, 500, TOKENS).tolist()
        skipped = sample == SAMPLES - 1
        kept = [] if skipped else list(range(0, TOKENS, 2))
        tasks += [task] * len(kept)
        samples += [sample] * len(kept)
        positions += kept
        tokens += [ids[position] for position in kept]
        lines.append(
            {
                "task_id": task,
                "sample_idx": sample,
                "prompt": texts[sample] if sample < len(texts) else f"prompt {sample}\nmore",
                "prompt_token_ids": ids[:-1],
                "generated_token_ids": [] if skipped else ids[-1:],
                "text": None if skipped else "text",
                "finish_reason": "skipped" if skipped else "length",
                **({"reason": "too long"} if skipped else {}),
            }
        )
    count = len(tasks)
    is_first = np.array(positions) == 0
    activations = {}
    for number, (hook, width) in enumerate(WIDTHS.items()):
        values = random.standard_normal((count, width)).astype(np.float32) * (scale * (1 + number))
        if hook.startswith("layer"):
            values[is_first] *= 100
        activations[hook] = values
    if unit == 1:
        activations["layer_0"][5] = 0
        activations["layer_3"][7, 2] = np.nan
        activations["layer_3"][9, 1] = -np.inf
    block = RowBlock.of(activations, tasks, sample_idx=samples, position=positions, token_id=tokens)
    return block, lines
