"""Processes and devices share a training: the same rows in every step, the same weights."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sae.__main__ import main
from sae.architectures import ARCHITECTURES
from sae.files import load
from sae.training.autoencoder_training import AutoencoderTraining
from sae.training.processes import mesh_of
from sae.training.row_stream import RowStream
from sae.training.run_settings import DataSettings
from sae.training.settings import SaeSettings
from tests.sae.small_run import HOOK, features, write_run

ROOT = Path(__file__).parents[2]
STEPS = 200


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", rows=2000, rows_per_file=50)


def flags(run: Path, out: Path, *more: str) -> list[str]:
    return [
        *("train", "--activations_dir", str(run), "--output_dir", str(out), "--hook_points", HOOK),
        *("--d_sae", "64", "--k", "4", "--batch_size", "40", "--train_rows", str(40 * STEPS)),
        *("--pool_rows", "800", "--read_streams", "4", "--learning_rate", "0.003", *more),
    ]


def rows_of_steps(run: Path, processes: int, steps: int) -> list[list[tuple]]:
    """Return the rows of each step, sorted, read by so many processes."""
    settings = DataSettings(
        activations_dir=str(run), batch_size=40, pool_rows=800, read_streams=4, skip_first=13
    )
    streams = [RowStream(settings, [HOOK], (index, processes)) for index in range(processes)]
    for stream in streams:
        stream.begin()
    found = []
    for _ in range(steps):
        parts = [next(stream)[HOOK] for stream in streams]
        found.append(sorted(map(tuple, np.concatenate(parts).tolist())))
    for stream in streams:
        stream.close()
    return found


def test_the_rows_of_every_step_are_the_same_for_any_number_of_processes(run_folder):
    one = rows_of_steps(run_folder, 1, 120)
    assert one == rows_of_steps(run_folder, 2, 120)
    assert one == rows_of_steps(run_folder, 4, 120)
    first_epoch = [row for step in one[:48] for row in step]
    assert len(set(first_epoch)) == len(first_epoch) > 1900


@pytest.mark.parametrize("shape", [(1, 8), (4, 2), (8, 1)])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_a_mesh_comes_to_the_weights_of_one_device(architecture, shape):
    settings = SaeSettings(
        architecture=architecture, d_sae="64", k=4, dead_rows=80, learning_rate=1e-3
    ).resolved(16)
    batches = features(40 * 30, 3, 16).reshape(30, 40, 16)
    params = []
    for mesh in (None, mesh_of(shape, 40, 64)):
        training = AutoencoderTraining(settings, 16, None, 40, 30, mesh=mesh, sparse=False)
        for batch in batches:
            training.step(batch)
        params.append({k: np.asarray(v) for k, v in training.state["params"].items()})
        assert training.metrics()["dead"] > 0 or architecture in ("jumprelu", "standard")
    for name, value in params[0].items():
        np.testing.assert_allclose(params[1][name], value, atol=1e-5, err_msg=name)
    encoder = training.state["params"]["encoder"]
    assert encoder.addressable_shards[0].data.shape == (64 // shape[1], 16)
    moments = jax.tree.leaves(training.state["optimizer"])
    assert any(leaf.ndim == 2 and leaf.addressable_shards[0].data.shape == (64 // shape[1], 16)
               for leaf in moments)  # fmt: skip


def test_what_does_not_fit_the_devices_is_refused(run_folder, tmp_path, capsys):
    for words, told in (
        (["--mesh_shape", "1,3"], "--mesh_shape 1,3 is for 3 devices; there are 8"),
        (["--mesh_shape", "1,8", "--d_sae", "63"], "63 latents cannot be split over 8"),
        (["--read_streams", "3"], "--read_streams 3 must be a multiple of the 1 processes"),
    ):
        assert main(flags(run_folder, tmp_path / "out", *words)) == 2
        assert told in capsys.readouterr().err


def run_processes(words: list[str], count: int) -> list[subprocess.CompletedProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "sae", *words, "--coordinator_address", address),
                *("--num_processes", str(count), "--process_id", str(index)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    return [
        subprocess.CompletedProcess(one.args, one.wait(timeout=300), *one.communicate())
        for one in started
    ]


def test_two_processes_go_on_where_one_stopped(run_folder, tmp_path):
    """The weights after 200 steps are those of one process, within 1e-5."""
    assert main(flags(run_folder, tmp_path / "whole")) == 0
    out = tmp_path / "out"
    half = flags(run_folder, out, "--checkpoint_seconds", "0", "--keep_checkpoints", "300")
    assert main(half) == 0
    for path in (out / "checkpoints").glob("step_*"):
        if int(path.stem[5:]) > STEPS // 2:
            path.unlink()
    for done in run_processes([*flags(run_folder, out), "--resume", "True"], 2):
        assert done.returncode == 0, done.stderr
    one, two = (load(folder / HOOK) for folder in (tmp_path / "whole", out))
    for name, value in one.arrays().items():
        np.testing.assert_allclose(two.arrays()[name], value, atol=1e-5, err_msg=name)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [50, 100, 150, 200]
