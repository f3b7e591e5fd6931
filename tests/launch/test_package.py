"""The archive holds all that a worker needs, and only that."""

import subprocess

import jax
import pytest

from inference.errors import InputError
from launch import package
from launch.package import make_archive


def test_the_archive_of_this_checkout_is_whole_and_always_the_same(tmp_path):
    archive = make_archive()
    assert archive == make_archive()
    file = tmp_path / "source.tar.gz"
    file.write_bytes(archive.data)
    subprocess.run(["tar", "--extract", "--gzip", f"--file={file}"], cwd=tmp_path, check=True)
    pins = dict(
        line.split("==") for line in (tmp_path / "constraints.txt").read_text().splitlines()
    )
    assert {"jax", "jaxlib", "flax", "numpy", "transformers"} <= set(pins)
    assert pins["jax"] == jax.__version__
    requirements = (tmp_path / "requirements.txt").read_text()
    assert "jax[tpu]" in requirements
    for name in ("extraction", "inference", "launch", "qwen_hooks", "sae", "tensor_files"):
        assert (tmp_path / name / "__init__.py").exists()


def test_requirements_of_an_installed_project(monkeypatch, tmp_path):
    """Without a checkout they are those of the installation."""
    of_checkout = list(package.required("tpu"))
    monkeypatch.setattr(package, "ROOT", tmp_path)
    lines = ["jax>=0.10.2", 'jax[tpu]>=0.10.2; extra == "tpu"', 'torch; extra == "test"']
    monkeypatch.setattr(package.importlib.metadata, "requires", lambda name: lines)
    assert list(package.required("tpu")) == ["jax>=0.10.2", "jax[tpu]>=0.10.2"]
    assert set(package.required("tpu")) <= set(of_checkout)

    def missing(name):
        raise package.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(package.importlib.metadata, "requires", missing)
    with pytest.raises(InputError, match="requirements are not known"):
        list(package.required("tpu"))
