"""Extract the activations of a data set to a run, from Python.

    run = extract(model, texts, "./store", ["layers.*.mlp"], positions=["all"])
    run.run_id, run.n_samples, run.open("layers.0.mlp")

`extract` runs the distributed command's code with the parameters that are loaded already, and
writes a run like any other. Inputs that are Python objects are also written, to `inputs.jsonl`, so
the command can repeat the run.
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
from extraction.hook_point_names import few
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
"""Settings of the command that the loaded model and the other arguments determine."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ExtractedRun:
    """A run that was written and verified.

    Attributes:
        run_id: id of the run, the name of its folder below the base folder.
        folder: folder with `activations/`, `outputs/outputs.jsonl` and `inputs.jsonl`.
        address: address of the run, for the commands of `python -m extraction`:
            `folder/activations`, or its bucket.
        metadata: content of `metadata.json`.
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

    def _repr_html_(self) -> str:
        from extraction.notebook_html import summary

        facts = {
            "run": self.run_id,
            "address": self.address,
            "rows": f"{self.n_rows:,} of {self.n_samples:,} samples",
            "files": f"{self.n_batches:,} of each hook point",
            "hook points": few([str(hook) for hook in self.metadata["layers_extracted"]]),
        }
        return summary("Extracted and verified", facts)

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
        """Return a dataset of the rows of a hook point, by any name; None: of the only one."""
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
    """Extract activations to a run, verify the run, and return it.

    It runs in one process; for several there is
    `python -m inference.distributed_inference_with_activations`.

    Args:
        model: the loaded model; its parameters are used as they are.
        data: an address as for `--dataset`; or an iterable of texts, token ids, chats or records
            (`{"text": ...}`, `{"input_ids": ..., "attention_mask": ...}`, a chat with its `tools`),
            such as a Hugging Face dataset.
        base_folder: folder that holds a folder for each run.
        hook_points: names, aliases or patterns of hook points.
        positions: selectors of tokens.
        run_id: id of a run to resume; None: a new run.
        verify_level: level of `extraction.maintenance.verify`, 1 to 3; 2 reads every file again.
        **settings: other settings of `DistributedSettings`: `sample_limit`, `random_sample`,
            `context_length`, `batch_size`, `format`, `save_every_n_samples`, ...

    Raises:
        InputError: an argument or an input is wrong; nothing was computed.
        ModelError: there is no such hook point.
        StoreError: the folder cannot be used, or the written run does not verify.
        SelfCheckError: a row is wrong; the rows are kept, and the run is marked.
        KeyboardInterrupt: ctrl-C was pressed; whole units are committed, and `run_id` resumes them.
    """
    if jax.process_count() > 1:
        raise InputError(
            "extract runs in one process; for several processes run"
            " python -m inference.distributed_inference_with_activations"
        )
    if not os.fspath(base_folder).strip():
        raise InputError("base_folder must not be empty")
    settled = sorted(settings.keys() & set(SETTLED))
    if settled:
        raise InputError(
            f"{settled[0]} cannot be given: the model and the other arguments determine it"
        )
    model.for_rows(hook_points)  # refuses unknown hook points before anything is written
    resume, run_id = run_id is not None, run_id or new_run_id()
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,100}", run_id):
        raise InputError(f"run_id must be letters, digits, _ and -, not {run_id!r:.120}")
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
        names = (*OF_HUGGING_FACE, *OF_TEXT_FILES)
        command.refuse_changed(names, "is for a file or a hub dataset, not for inputs in memory")
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
    """Write the inputs as JSON Lines, a record for each, with the fields that are read.

    Raises:
        InputError: `data` is no list of inputs, an input cannot be written, or the file exists with
            other inputs.
    """
    if isinstance(data, Mapping) or hasattr(data, "columns"):
        raise InputError(
            "data must be a list of texts, token ids or records, or one split of a data set, not a"
            f" {type(data).__name__}"
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
        raise InputError(
            f"{path} holds other inputs than these; give the same inputs, or another run_id"
        )


def _plain(value: Any) -> Any:
    """Return an array as a list."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if hasattr(value, "__array__"):  # of jax or torch
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} is not text, a number, a list or an object")
