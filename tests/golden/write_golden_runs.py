"""Write the golden runs: with commit 20ec5df checked out, and never again after that.

    git worktree add ../before 20ec5df && cd ../before
    python PATH/TO/tests/golden/write_golden_runs.py FOLDER

FOLDER gets one run for each stored form (`pickle`, `npz`, `safetensors`, `safetensors_bfloat16`,
`raw`, `raw_bfloat16`), all of the same samples; `extractor`, a run of `ActivationExtractor` alone;
`plain`, a folder that has pickles and metadata.json and nothing else, as the original extraction
script left it; `unfinished`, the pickle run stopped after two of its units; and `expected.npz`: the
keys of every row and, for each hook point, its values in float32. Before they are kept, the values
are compared with Hugging Face's torch model on the same tokens, unpadded.
"""

import importlib
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())

import numpy as np
import torch
from transformers import Qwen2ForCausalLM

COMMAND = "inference.distributed_inference_with_activations"
FORMS = {
    "pickle": ("pickle", "float32"),
    "npz": ("npz", "float32"),
    "safetensors": ("safetensors", "float32"),
    "safetensors_bfloat16": ("safetensors", "bfloat16"),
    "raw": ("raw", "float32"),
    "raw_bfloat16": ("raw", "bfloat16"),
}
LAYERS = (1, 3)
NEURONS = "layers.2.mlp.neurons"
HOOK_POINTS = ("layer_1", "layer_3", NEURONS)
TASKS = [
    {"task_id": "capital", "prompt": "The capital of France is", "label": "known"},
    {"task_id": "dräuend/ünïcode 日本", "prompt": "Grüße, 日本!"},
    {"task_id": "chat", "messages": [{"role": "user", "content": "Say 1 2 3."}]},
    {"task_id": "ids", "token_ids": [5, 17, 300, 17, 5, 42, 9, 9, 9, 120]},
    {"task_id": "empty", "token_ids": []},
    {"task_id": "long", "prompt": "one two three four five six seven eight nine ten " * 4},
]
NEW_TOKENS, ROWS_PER_FILE = 3, 6
TOLERANCE = 1e-5


class StoppedError(Exception):
    """The run was stopped on purpose."""


def run(folder: Path, checkpoint: Path, tasks: Path, file_format: str, dtype: str) -> None:
    """One run of the distributed command."""
    main = importlib.import_module(COMMAND).main
    main(
        f"--model_path {checkpoint} --tasks_file {tasks} --output_dir {folder / 'outputs'}"
        f" --activations_dir {folder / 'activations'} --layers_to_extract 1 3"
        f" --hook_points {NEURONS} --max_new_tokens {NEW_TOKENS} --dtype float32"
        f" --save_every_n_samples {ROWS_PER_FILE} --format {file_format} --store_dtype {dtype}"
        f" --self_check 0".split()
    )


def stop_after_two_units(folder: Path, checkpoint: Path, tasks: Path) -> None:
    """A run that was begun and not finished."""
    unit_run = importlib.import_module("inference.unit_run").UnitRun
    commit, left = unit_run.commit, [2]

    def commit_or_stop(self: Any, *arguments: Any) -> None:
        if not left[0]:
            raise StoppedError
        left[0] -= 1
        commit(self, *arguments)

    unit_run.commit = commit_or_stop
    try:
        run(folder, checkpoint, tasks, "pickle", "float32")
    except StoppedError:
        pass
    finally:
        unit_run.commit = commit


def read_pickles(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by hook point, in the order of the files, read with pickle alone."""
    found: dict[str, list[dict[str, Any]]] = {}
    for hook in HOOK_POINTS:
        files = sorted(folder.glob(f"{hook}_batch_*.pkl"))
        found[hook] = [row for f in files for row in pickle.loads(f.read_bytes())["activations"]]
    return found


def keep_output(kept: dict[str, np.ndarray], name: str) -> Any:
    """A forward hook that keeps a module's output `[S, width]`."""
    return lambda _module, _inputs, output: kept.update({name: output[0].numpy()})


def keep_input(kept: dict[str, np.ndarray], name: str) -> Any:
    """A forward hook that keeps a module's input `[S, width]`."""
    return lambda _module, inputs: kept.update({name: inputs[0][0].numpy()})


def compare_with_torch(
    rows: dict[str, list[dict[str, Any]]], outputs: Path, checkpoint: Path
) -> None:
    """Refuse rows that differ from torch's."""
    model = Qwen2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    lines = [json.loads(line) for line in outputs.read_text(encoding="utf-8").splitlines()]
    by_sample = {(line["task_id"], line["sample_idx"]): line for line in lines}
    values: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for sample, line in by_sample.items():
        ids = line["prompt_token_ids"] + line["generated_token_ids"]
        if not line["prompt_token_ids"]:
            continue
        kept: dict[str, np.ndarray] = {}
        handles = [
            model.model.layers[i].register_forward_hook(keep_output(kept, f"layer_{i}"))
            for i in LAYERS
        ]
        neurons = model.model.layers[2].mlp.down_proj
        handles.append(neurons.register_forward_pre_hook(keep_input(kept, NEURONS)))
        with torch.inference_mode():
            model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        values[sample] = kept
    for hook, found in rows.items():
        for row in found:
            wanted = values[row["task_id"], row["sample_idx"]][hook][row["position"]]
            error = np.abs(row["activation"] - wanted).max() / np.abs(wanted).max()
            if not error < TOLERANCE:
                raise SystemExit(f"{hook} {row['task_id']} {row['position']}: error {error}")


def write_plain(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """A folder as the original extraction script left it: layers alone, four keys a row."""
    folder.mkdir()
    batches = []
    for layer in LAYERS:
        hook = f"layer_{layer}"
        for number, first in enumerate(range(0, len(rows[hook]), ROWS_PER_FILE), start=1):
            part = rows[hook][first : first + ROWS_PER_FILE]
            items = [
                {
                    "task_id": row["task_id"],
                    "sample_idx": row["sample_idx"],
                    "activation": np.array(row["activation"], np.float32),
                    "timestamp": "2025-01-15T10:30:00",
                }
                for row in part
            ]
            name = f"{hook}_batch_{number:06d}.pkl"
            (folder / name).write_bytes(pickle.dumps({"layer": layer, "activations": items}))
            batches.append(
                {"batch_id": number, "layer": hook, "file": name, "n_samples": len(items)}
            )
    document = {
        "model_name": "Qwen/Qwen2.5-0.5B",
        "layers_extracted": list(LAYERS),
        "hidden_dim": len(rows["layer_1"][0]["activation"]),
        "total_samples": len(rows["layer_1"]),
        "batches": batches,
    }
    (folder / "metadata.json").write_text(json.dumps(document, indent=2), encoding="utf-8")


def write_by_extractor(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """A run of `ActivationExtractor`, row by row."""
    extraction = importlib.import_module("extraction")
    config = extraction.ActivationExtractionConfig(
        output_dir=folder,
        layers_to_extract=LAYERS,
        hidden_dim=len(rows["layer_1"][0]["activation"]),
        model_name="Qwen/Qwen2.5-0.5B",
        save_every_n_samples=ROWS_PER_FILE,
    )
    with extraction.ActivationExtractor(config) as extractor:
        for pair in zip(*(rows[f"layer_{layer}"] for layer in LAYERS), strict=True):
            for layer, row in zip(LAYERS, pair, strict=True):
                extractor.extract_layer_activation(
                    layer,
                    row["activation"],
                    row["task_id"],
                    row["sample_idx"],
                    step=row["step"],
                    position=row["position"],
                    token_id=row["token_id"],
                )


def main() -> None:
    """The command; see the module's docstring."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    os.chdir(folder)  # settings are recorded in the runs: they name no machine's folders
    checkpoint, tasks = Path("checkpoint"), Path("tasks.json")
    importlib.import_module("examples.make_demo").make_checkpoint(checkpoint)
    tasks.write_text(json.dumps(TASKS, ensure_ascii=False), encoding="utf-8")
    for name, (file_format, dtype) in FORMS.items():
        run(Path(name), checkpoint, tasks, file_format, dtype)
    stop_after_two_units(Path("unfinished"), checkpoint, tasks)
    rows = read_pickles(Path("pickle/activations"))
    compare_with_torch(rows, Path("pickle/outputs/outputs.jsonl"), checkpoint)
    write_plain(Path("plain"), rows)
    write_by_extractor(Path("extractor"), rows)
    first = rows["layer_1"]
    columns = {"task_id": np.array([row["task_id"] for row in first])}
    for key in ("sample_idx", "step", "position", "token_id"):
        columns[key] = np.array([row[key] for row in first])
    for hook, found in rows.items():
        columns[hook] = np.stack([row["activation"] for row in found])
    np.savez_compressed("expected.npz", **columns)


if __name__ == "__main__":
    main()
