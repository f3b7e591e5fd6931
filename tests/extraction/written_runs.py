"""Runs as the commands write them: units of samples with several rows, output lines, a plan."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from extraction.run.identity import RunIdentity, begin
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.rows import RowBlock, text_column
from extraction.storage import Storage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata

HOOKS = ("layer_6", "layer_12")
WIDTH = 4
UNITS = 3
SAMPLES = 4
"""Of a unit."""


def sample_rows(unit: int, *, first: int = 0) -> tuple[RowBlock, list[dict[str, Any]]]:
    """The rows and output lines of a unit; sample s of it has s + 1 rows, the last is skipped.

    Args:
        unit: from 0.
        first: added to the numbers of the samples.
    """
    tasks, samples, steps, lines = [], [], [], []
    for sample in range(SAMPLES):
        task, number = f"tâsk_{unit}", first + SAMPLES * unit + sample
        skipped = sample == SAMPLES - 1
        generated = [] if skipped else list(range(100, 101 + sample))
        lines.append(
            {
                "task_id": task,
                "sample_idx": number,
                "prompt": f"prompt {number}: " + "long " * 20 + "end",
                "prompt_token_ids": [1, 2, 3],
                "generated_token_ids": generated,
                "text": None if skipped else "text",
                "finish_reason": "skipped" if skipped else "length",
            }
        )
        tasks += [task] * len(generated)
        samples += [number] * len(generated)
        steps += range(len(generated))
    rows = len(tasks)
    step = np.array(steps, np.int32)
    random = np.random.default_rng([unit, first])
    values = random.standard_normal((len(HOOKS), rows, WIDTH)).astype(np.float32)
    block = RowBlock(
        task_ids=text_column(tasks),
        sample_idx=np.array(samples, np.int64),
        step=step,
        position=step + 2,
        token_id=step + 99,
        timestamps=text_column(["2025-01-15T10:30:00+00:00"] * rows),
        activations=dict(zip(HOOKS, values, strict=True)),
    )
    return block, lines


def write_run(
    place: Path | Storage,
    file_format: str = "pickle",
    dtype: str = "float32",
    *,
    units: int = UNITS,
    planned: int | None = None,
    first: int = 0,
    fingerprint: dict[str, Any] | None = None,
    model_name: str = "Qwen/Qwen2.5-0.5B",
    metadata: bool = True,
) -> Storage:
    """A run of `units` units of `planned` ones, as many if that is None."""
    storage = LocalStorage(place) if isinstance(place, Path) else place
    identity = RunIdentity.new(
        model_name=model_name,
        hook_points=HOOKS,
        hidden_dim=WIDTH,
        file_format=file_format,
        dtype=dtype,
        planned_batches=units if planned is None else planned,
        fingerprint=fingerprint or {},
        run={"settings": {"max_new_tokens": 3}},
    )
    begin(storage, identity)
    committer = Committer(storage, HOOKS, file_format, dtype)
    for unit in range(units):
        committer.commit(unit + 1, *sample_rows(unit, first=first))
    if metadata:
        write_metadata(storage)
    return storage


def edit_json(storage: Storage, name: str, change) -> None:
    """Changes a JSON file: `change` gets the document, and may give another."""
    document = json.loads(storage.get(name))
    document = change(document) or document
    storage.replace(name, json.dumps(document).encode())


def records_of(storage: Storage) -> list[CommitRecord]:
    return list(CommitLog(storage).records())


def content_of(storage: Storage) -> dict[str, bytes]:
    """Every file of the run."""
    folders = ("", "_run/", "_run/commits/", "_run/outputs/", "_run/quarantine/")
    return {name: storage.get(name) for folder in folders for name in storage.names(folder)}


def stop_after(monkeypatch, storage: Storage, puts: int) -> None:
    """Ends what writes to a storage, as ctrl-C does, when so many new files are there."""
    whole, left = storage.put_new, [puts]

    def put_new(name, data, attributes=None):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        whole(name, data, attributes)

    monkeypatch.setattr(storage, "put_new", put_new)
