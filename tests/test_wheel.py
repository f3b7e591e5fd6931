"""The wheel in environments of its own: console scripts, and reading with numpy alone.

Packages that the tests already have are put on the path of the new environment; only the wheel is
installed, so nothing is downloaded but what builds it.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = Path(np.__file__).parents[1]
READING = ("numpy", "numpy.libs", "google_crc32c", "google_crc32c.libs")
SCRIPTS = ("qwen-extract", "qwen-extract-simple", "qwen-activations", "qwen-launch", "qwen-sae")
# A path of the caller's would let pip find the package there and install nothing.
WITHOUT_PATHS = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}

READ = """
import sys
from extraction import ActivationDataset
dataset = ActivationDataset(sys.argv[1], layer=1)
print(len(dataset), dataset[:].shape)
assert not {"jax", "transformers", "torch"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: building writes into the sources' folder."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in tracked.strip("\0").split("\0"):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "sources" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    run(*command, folder / "sources", cwd=ROOT)
    (found,) = folder.glob("*.whl")
    return found


def environment(folder: Path, wheel: Path) -> Path:
    """The `bin` folder of a new environment that holds the wheel alone."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-I", "-m", "pip", "--isolated", "--python", python)
    command = (*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    told = run(*command, cwd=folder, env=WITHOUT_PATHS)
    assert (folder / "bin" / SCRIPTS[0]).is_file(), told
    return folder / "bin"


def site_packages(bin_folder: Path) -> Path:
    (found,) = (bin_folder.parent / "lib").glob("python*/site-packages")
    return found


def run(*words, cwd: Path, status: int = 0, env: dict[str, str] | None = None) -> str:
    result = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stderr
    return result.stdout


def test_console_scripts_run_outside_the_repository(tmp_path, wheel):
    scripts = environment(tmp_path / "environment", wheel)
    (site_packages(scripts) / "others.pth").write_text(f"{PACKAGES}\n")
    for script in SCRIPTS:
        assert "usage:" in run(scripts / script, "--help", cwd=tmp_path, env=WITHOUT_PATHS)
        run(scripts / script, "--no_such_flag", cwd=tmp_path, status=2, env=WITHOUT_PATHS)


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


def test_a_foreign_package_of_the_same_name_is_told_in_one_line(tmp_path, wheel):
    """As after installing Roboflow's `inference` beside ours: its files replace those of ours."""
    scripts = environment(tmp_path / "environment", wheel)
    (site_packages(scripts) / "others.pth").write_text(f"{PACKAGES}\n")
    ours = site_packages(scripts) / "inference"
    shutil.rmtree(ours)
    ours.mkdir()
    (ours / "__init__.py").write_text("raise RuntimeError('this is somebody else')\n")
    for script in SCRIPTS:
        command = [scripts / script, "--help"]
        told = subprocess.run(
            command, cwd=tmp_path, env=WITHOUT_PATHS, capture_output=True, text=True, timeout=60
        )
        assert told.returncode == 1
        assert told.stderr.count("\n") == 1
        assert "the package 'inference'" in told.stderr
        assert "an environment of its own" in told.stderr
