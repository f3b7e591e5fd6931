"""The wheel in environments of its own: console scripts, and reading with numpy alone.

Packages that the tests already have are put on the path of the new environment; only the wheel is
installed, so nothing is downloaded but what builds it.
"""

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = Path(np.__file__).parents[1]
READING = ("numpy", "numpy.libs", "google_crc32c", "google_crc32c.libs")
SCRIPTS = ("qwen-extract", "qwen-extract-simple", "qwen-activations", "qwen-launch")

READ = """
import sys
from extraction import ActivationDataset
dataset = ActivationDataset(sys.argv[1], layer=1)
print(len(dataset), dataset[:].shape)
assert not {"jax", "transformers", "torch"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*command, ROOT], check=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


def environment(folder: Path, wheel: Path) -> Path:
    """The `bin` folder of a new environment that holds the wheel alone."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-index", wheel], check=True, timeout=300)
    return folder / "bin"


def site_packages(bin_folder: Path) -> Path:
    (found,) = (bin_folder.parent / "lib").glob("python*/site-packages")
    return found


def run(*words, cwd: Path, status: int = 0) -> str:
    result = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stderr
    return result.stdout


def test_console_scripts_run_outside_the_repository(tmp_path, wheel):
    scripts = environment(tmp_path / "environment", wheel)
    (site_packages(scripts) / "others.pth").write_text(f"{PACKAGES}\n")
    for script in SCRIPTS:
        assert "usage:" in run(scripts / script, "--help", cwd=tmp_path)
        run(scripts / script, "--no_such_flag", cwd=tmp_path, status=2)


def test_numpy_and_google_crc32c_are_enough_to_read(tmp_path, wheel):
    scripts = environment(tmp_path / "environment", wheel)
    for name in READING:
        if (PACKAGES / name).exists():
            (site_packages(scripts) / name).symlink_to(PACKAGES / name)
    golden = ROOT / "tests/golden/runs/safetensors/activations"
    run(scripts / "python", "-c", READ, golden, cwd=tmp_path)
    assert "good" in run(scripts / "qwen-activations", "verify", golden, cwd=tmp_path)
    out = tmp_path / "rows.npz"
    export = ("export", golden, out, "--to", "npz", "--hook_points", "layer_1")
    run(scripts / "qwen-activations", *export, cwd=tmp_path)
    assert out.is_file()
