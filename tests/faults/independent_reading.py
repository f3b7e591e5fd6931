"""What a run's files hold, read without the store's own code: json, pickle and checksums.

Files are given as a mapping from their path in the run's folder to their bytes, so that folders,
buckets and imagined disks are read alike.
"""

import dataclasses
import hashlib
import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import safetensors.numpy

Row = tuple[str, int, int, int, int, bytes]
"""task_id, sample_idx, step, position, token_id, the activation's bytes."""

Files = Mapping[str, bytes]

RECORD = re.compile(r"activations/_run/commits/(\d{6})\.json")
CHANGING = ("run_id", "created_at")
"""Keys of `metadata.json` that differ between any two runs."""


_LEFT = re.compile(r"activations/_run/lock\.\d+|outputs/\.tmp-.*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What counts as a run's content.

    Attributes:
        rows: of each hook point, in the order of the batches.
        lines: the output lines of all batches, in their order.
        outputs: the lines of `outputs.jsonl`.
        metadata: `metadata.json` without what differs between any two runs.
        names: of all files but locks, and but what a killed process left beside `outputs.jsonl`:
            that folder may be another run's too, so nobody tidies it.
    """

    rows: dict[str, list[Row]]
    lines: list[Any]
    outputs: list[Any] | None
    metadata: dict[str, Any] | None
    names: frozenset[str]

    def count(self) -> int:
        """Rows of all hook points."""
        return sum(map(len, self.rows.values()))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def records(files: Files) -> dict[int, dict[str, Any]]:
    """The commit records, by batch id."""
    found = {int(m[1]): name for name in files if (m := RECORD.fullmatch(name))}
    return {batch_id: json.loads(files[found[batch_id]]) for batch_id in sorted(found)}


def read(files: Files) -> Reading:
    """What the records of a run name, and what is derived from them."""
    rows: dict[str, list[Row]] = {}
    lines = []
    for record in records(files).values():
        for hook, file in record["files"].items():
            sidecar = record["sidecars"].get(hook)
            data = files["activations/" + file["file"]]
            second = files["activations/" + sidecar["file"]] if sidecar else b""
            rows.setdefault(hook, []).extend(_rows(file["file"], data, second))
        lines += _json_lines(files["activations/" + record["outputs"]["file"]])
    metadata = files.get("activations/metadata.json")
    outputs = files.get("outputs/outputs.jsonl")
    return Reading(
        rows=rows,
        lines=lines,
        outputs=None if outputs is None else _json_lines(outputs),
        metadata=None if metadata is None else _without_changing(json.loads(metadata)),
        names=frozenset(name for name in files if not _LEFT.fullmatch(name)),
    )


def _without_changing(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in CHANGING}


def _json_lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.split(b"\n") if line]


def _rows(name: str, data: bytes, sidecar: bytes) -> list[Row]:
    if name.endswith(".pkl"):
        return [
            (
                *(r[key] for key in ("task_id", "sample_idx", "step", "position", "token_id")),
                r["activation"].tobytes(),
            )
            for r in pickle.loads(data)["activations"]
        ]
    if name.endswith(".safetensors"):
        arrays = safetensors.numpy.load(data)
        activations = arrays.pop("activations")
    elif name.endswith(".npz"):
        arrays = dict(np.load(io.BytesIO(data)))
        activations = arrays["activations"]
    else:
        arrays = dict(np.load(io.BytesIO(sidecar)))
        activations = np.frombuffer(data, "<f4").reshape(arrays["shape"])
    utf8, offsets = arrays["task_id.utf8"].tobytes(), arrays["task_id.offsets"].tolist()
    columns = (arrays[key].tolist() for key in ("sample_idx", "step", "position", "token_id"))
    return [
        (utf8[offsets[i] : offsets[i + 1]].decode(), *numbers, row.tobytes())
        for i, *numbers, row in zip(
            arrays["task_id.index"].tolist(), *columns, activations, strict=True
        )
    ]


def standing_problems(files: Files, said: Collection[tuple], whole: Reading) -> list[str]:
    """What must not be, whenever a run ends: told without resuming it.

    Args:
        files: of the run.
        said: what the run told before it ended: ("committed", batch id), ("finished",).
        whole: an uninterrupted run.
    """
    problems = []
    for name, data in files.items():
        is_record = RECORD.fullmatch(name) is not None
        if is_record or name.endswith(("/metadata.json", "/run.json")):
            try:
                document = json.loads(data)
            except ValueError:
                problems.append(f"{name} is visible and no JSON")
                continue
            if is_record:
                problems += _broken_promises(name, document, files)
            elif name.endswith("/metadata.json"):
                problems += _untrue(document, files)
        if name == "outputs/outputs.jsonl":
            try:
                is_whole = _json_lines(data) == whole.outputs
            except ValueError:
                is_whole = False
            if not is_whole:
                problems.append(f"{name} is visible and not whole")
    visible = {int(m[1]) for name in files if (m := RECORD.fullmatch(name))}
    told = {event[1] for event in said if event[0] == "committed"}
    if told - visible:
        problems.append(f"batches {sorted(told - visible)} were acknowledged, and are not there")
    if ("finished",) in said and not problems:
        found = read(files)
        if (found.outputs, found.metadata) != (whole.outputs, whole.metadata):
            problems.append("the run said that it had finished, and has not")
    return problems


def _broken_promises(name: str, record: dict[str, Any], files: Files) -> list[str]:
    problems = []
    named = [*record["files"].values(), *record["sidecars"].values(), record["outputs"]]
    for file in named:
        data = files.get("activations/" + file["file"])
        if data is None:
            problems.append(f"{name} names {file['file']}, which is missing")
        elif (
            len(data) != file["bytes"]
            or f"{google_crc32c.value(data):08x}" != file["crc32c"]
            or hashlib.sha256(data).hexdigest() != file["sha256"]
        ):
            problems.append(f"{name} names {file['file']}, which holds something else")
    return problems


def _untrue(metadata: dict[str, Any], files: Files) -> list[str]:
    recorded = {f"activations/_run/commits/{b['batch_id']:06d}.json" for b in metadata["batches"]}
    missing = recorded - set(files)
    return [f"metadata.json lists batches without {sorted(missing)}"] if missing else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Between a resumed run and an uninterrupted one.

    Attributes:
        lost: rows that are not there, or not bit for bit.
        twice: rows beyond the first with the same key.
        others: what else differs.
    """

    lost: int
    twice: int
    others: list[str]


def compare(found: Reading, whole: Reading) -> Difference:
    """Compares what a resumed run holds with an uninterrupted one."""
    lost = twice = 0
    others = []
    for hook in {*found.rows, *whole.rows}:
        there, wanted = found.rows.get(hook, []), whole.rows.get(hook, [])
        lost += (Counter(wanted) - Counter(there)).total()
        keys = {(task_id, sample, position) for task_id, sample, _, position, *_ in there}
        twice += len(there) - len(keys)
        if there != wanted:
            others.append(f"the rows of {hook} differ")
    for name in ("lines", "outputs", "metadata"):
        if getattr(found, name) != getattr(whole, name):
            others.append(f"{name} differ")
    if found.names != whole.names:
        others.append(f"these files are too many or missing: {sorted(found.names ^ whole.names)}")
    return Difference(lost=lost, twice=twice, others=others)
