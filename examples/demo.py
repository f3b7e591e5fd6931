"""Shows a real model's activations, from a checkpoint to checked files.

    python -m examples.demo FOLDER

It makes SmolLM2, dequantised (`examples/smollm2.py`), runs three addresses of presidents through
it, keeps every token's activations after two of its 30 blocks, checks the files and shows them, as
text and as a page for the browser. Each step is a command that it prints first, with the seconds
that it took afterwards.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TEXT = "examples/text/state_of_the_union.jsonl"
"""From the repository's folder, in which the demo runs."""

LAYERS = ("5", "15")


def steps(folder: Path) -> list[tuple[str, list[str]]]:
    """Return what the demo does: a title and a command each, after `python -m`."""
    model, run, page = (str(folder / name) for name in ("smollm2", "activations", "report.html"))
    extract = [
        *("inference.distributed_inference_with_activations", "--model_path", model),
        *("--dataset", TEXT, "--id_field", "id", "--sample_limit", "3"),
        *("--context_length", "512", "--positions", "all", "--layers_to_extract", *LAYERS),
        *("--max_new_tokens", "0", "--format", "safetensors"),
        *("--output_dir", str(folder / "outputs"), "--activations_dir", run),
    ]
    return [
        ("the model, about 5 s", ["examples.smollm2", model]),
        ("19,000 tokens through it, about 30 s", extract),
        ("are the files whole? about 1 s", ["extraction", "verify", run]),
        ("what is in them? about 1 s", ["extraction", "inspect", run]),
        ("the same as a page, about 1 s", ["extraction", "report", run, "--output", page]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; the status of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="new folder for the model and the run")
    folder = parser.parse_args(arguments).folder
    todo = steps(folder)
    begun_all = time.monotonic()
    for number, (title, command) in enumerate(todo, 1):
        print(f"\n[{number} of {len(todo)}] {title}", flush=True)
        print(f"$ python -m {shlex.join(command)}", flush=True)
        begun = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *command]).returncode
        print(f"({time.monotonic() - begun:.1f} s)", flush=True)
        if status:
            return status
    print(
        f"""
All {len(todo)} steps took {time.monotonic() - begun_all:.0f} s. Next:
  the page    open {folder.absolute() / "report.html"} in a browser

After `source .venv/bin/activate`:
  in Python   from extraction import ActivationDataset
              dataset = ActivationDataset("{folder}/activations", layer=15)
              dataset, dataset[0:4]   # rows are float32 [n, 576]
  train       python -m sae train --activations_dir {folder}/activations \\
                  --hook_points layer_15 --output_dir {folder}/saes --d_sae 8x --k 32 \\
                  --max_norm_multiple 10 --batch_size 1024 --learning_rate 0.001 --train_rows 2e5
              a sparse autoencoder, in about half a minute (docs/sae.md)
  your model  the command of step 2 with your own --model_path (a folder or a Hugging Face id),
              --dataset (such as corpus.jsonl, a {{"text": ...}} per line) and --layers_to_extract
  all flags   python -m inference.distributed_inference_with_activations --help"""
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
