"""Extraction of a data set's activations into a folder of runs, from Python.

    run = extract(model, texts, "./store", ["layers.*.mlp"], positions=["all"])
    run.run_id, run.n_samples, run.open("layers.0.mlp")

The distributed command does the work, with the parameters that are loaded already; what is written
is a run like any other. Inputs that are given as Python objects are written beside it, so the
command line can repeat it.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from extraction.errors import StoreError
from extraction.maintenance.verify import verify
from extraction.progress import ProgressLine
from extraction.reading.dataset import ActivationDataset
from extraction.run.identity import new_run_id
from extraction.run_layout import METADATA_FILE, OUTPUTS_FILE
from extraction.setting_names import arguments_renamed
from extraction.storage import file_operations, open_storage
from inference.engine.distributed_run import run
from inference.engine.language_model import LanguageModel
from inference.errors import InputError
from inference.inputs.datasets import read_fields, read_tasks_of
from inference.inputs.prompt_forms import without_arrow_nulls
from inference.settings.commands import DistributedSettings
from inference.settings.inputs import OF_HUGGING_FACE, OF_TEXT_FILES

ACTIVATIONS, OUTPUTS, INPUTS_FILE = "activations", "outputs", "inputs.jsonl"

SETTLED = (
    "model_path", "revision", "dtype", "mesh_shape", "scan_layers", "tasks_file", "dataset",
    "hook_points", "layers_to_extract", "positions", "activations_dir", "output_dir", "resume",
    "coordinator_address", "num_processes", "process_id",
)  # fmt: skip
"""Settings of the command that the loaded model and the other arguments decide."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ExtractedRun:
    """A run that was written and verified.

    Attributes:
        run_id: its name below the base folder, 32 hexadecimal digits.
        folder: `activations/` with `metadata.json`, `outputs/outputs.jsonl`, `inputs.jsonl`.
        address: of the run itself, as the commands of `python -m extraction` take it:
            `folder/activations`, or its bucket.
        metadata: what `metadata.json` holds.
    """

    run_id: str
    folder: Path
    address: str
    metadata: Mapping[str, Any]

    def __repr__(self) -> str:
        return (
            f"ExtractedRun({self.address!r}: {self.n_rows:,} rows of {self.n_samples:,} samples in"
            f" {self.n_batches:,} batches)"
        )

    @property
    def n_samples(self) -> int:
        """Number of inputs with rows; an input that is cut into pieces counts once for each."""
        return self.metadata["total_sequences"]

    @property
    def n_rows(self) -> int:
        """Number of rows of each hook point."""
        return self.metadata["total_samples"]

    @property
    def n_batches(self) -> int:
        """Number of files of each hook point."""
        return len({batch["batch_id"] for batch in self.metadata["batches"]})

    def open(self, hook_point: int | str | None = None) -> ActivationDataset:
        """Open the rows of a hook point, by any of its names; None for the only hook point."""
        return ActivationDataset(self.address, hook_point)

    def outputs(self) -> list[dict[str, Any]]:
        """Return the output line of each sample: `task_id`, `prompt_token_ids`, ..."""
        text = (self.folder / OUTPUTS / OUTPUTS_FILE).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]


@arguments_renamed(
    {"dataset": "data", "activations_dir": "base_folder", "output_dir": "base_folder"}
)
def extract(
    model: LanguageModel,
    data: str | os.PathLike[str] | Iterable[Any],
    base_folder: str | Path,
    hook_points: str | Sequence[str],
    positions: str | Sequence[str] = ("last",),
    *,
    run_id: str | None = None,
    verify_level: int = 2,
    **settings: Any,
) -> ExtractedRun:
    """Extract activations, verify them, and return the runs.

    Args:
        model: loaded; its parameters are used as they are.
        data: what `--dataset` takes; or texts, token ids, chats, or records (`{"text": ...}`,
            `{"input_ids": ..., "attention_mask": ...}`, a chat with `tools` beside it), a Hugging
            Face dataset among them.
        base_folder: holds a folder for each run.
        hook_points: names, aliases, patterns.
        positions: selectors of tokens.
        run_id: of a run to go on with; None: a new one.
        verify_level: 1 to 3, of `extraction.maintenance.verify`; 2 reads every file again.
        **settings: any other of `DistributedSettings`: `sample_limit`, `random_sample`,
            `context_length`, `batch_size`, `format`, `save_every_n_samples`, ...

    One process; several run `python -m inference.distributed_inference_with_activations`.

    Raises:
        InputError: something is wrong with what was given; nothing was computed.
        ModelError: there is no such hook point.
        StoreError: the folder cannot be used, or what was written does not verify.
        SelfCheckError: a row is wrong; what is written is kept, and marked.
        KeyboardInterrupt: ctrl-C; whole units are committed, and the same `run_id` goes on.
    """
    if jax.process_count() > 1:
        raise InputError(
            "extract runs in one process; for several there is"
            " python -m inference.distributed_inference_with_activations"
        )
    if not os.fspath(base_folder).strip():
        raise InputError("base_folder must not be empty")
    settled = sorted(settings.keys() & set(SETTLED))
    if settled:
        raise InputError(f"{settled[0]} is decided by the model and the arguments before it")
    model.for_rows(hook_points)  # refuses what there is not, before anything is written
    resume, run_id = run_id is not None, run_id or new_run_id()
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,100}", run_id):
        raise InputError(f"a run_id is letters, digits, _ and -, not {run_id!r:.120}")
    folder = Path(base_folder).expanduser() / run_id
    mesh = model.layout.mesh.shape
    given = os.fspath(data) if isinstance(data, str | os.PathLike) else None
    command = DistributedSettings(
        **{
            "model_path": model.model_path,
            "revision": model.revision,
            "dtype": str(model.dtype),
            "mesh_shape": f"{mesh['data']},{mesh['model']}",
            "dataset": given or str(folder / INPUTS_FILE),
            "hook_points": [hook_points] if isinstance(hook_points, str) else [*hook_points],
            "positions": [positions] if isinstance(positions, str) else [*positions],
            "max_new_tokens": 0,
            "activations_dir": str(folder / ACTIVATIONS),
            "output_dir": str(folder / OUTPUTS),
            "resume": resume,
            **settings,
            "repetition_penalty": str(settings.get("repetition_penalty", 1.0)),
        }
    )
    if given is None:
        command.refuse_changed((*OF_HUGGING_FACE, *OF_TEXT_FILES), "is not for inputs given here")
        _write_inputs(folder / INPUTS_FILE, data, command)
    run(*read_tasks_of(command), params=model.params, run_id=run_id)
    storage = open_storage(command.cloud() or str(folder / ACTIVATIONS))
    with ProgressLine() as progress:
        report = verify(storage, verify_level, progress)
    if report.exit_status:
        raise StoreError("\n".join(report.lines()))
    metadata = json.loads(storage.get(METADATA_FILE))
    return ExtractedRun(run_id=run_id, folder=folder, address=storage.address, metadata=metadata)


def _write_inputs(path: Path, data: Any, settings: DistributedSettings) -> None:
    """Write the inputs as JSON Lines, one record each, with the fields that are read.

    Raises:
        InputError: they are no list of inputs, one cannot be written, or others are there already.
    """
    if isinstance(data, Mapping) or hasattr(data, "columns"):
        raise InputError(
            f"a {type(data).__name__} is no list of inputs; give texts, token ids, records, or one"
            " split of a data set"
        )
    fields, is_arrow = read_fields(settings), hasattr(data, "features")
    lines = []
    for number, item in enumerate(data):
        record = item if isinstance(item, Mapping) else {settings.text_field: item}
        record = {name: value for name, value in record.items() if name in fields}
        record = without_arrow_nulls(record) if is_arrow else record
        try:
            lines.append(json.dumps(record, ensure_ascii=False, default=_plain).encode() + b"\n")
        except (TypeError, ValueError) as error:  # surrogates too, which no file can hold
            raise InputError(f"data[{number}] cannot be written as JSON: {error}") from None
    content = b"".join(lines)
    if not path.exists():
        file_operations.make_folder(path.parent.absolute())
        file_operations.publish_new(path, content)
    elif path.read_bytes() != content:
        raise InputError(f"{path} holds other inputs; nothing was changed")


def _plain(value: Any) -> Any:
    """Return an array as a list."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if hasattr(value, "__array__"):  # of jax or torch
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} is none of text, numbers, lists and objects")
