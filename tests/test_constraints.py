"""The versions that the tests run with are named, and the lower bounds are among them."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = ["constraints.txt", "constraints-lowest.txt"]
PYTHONS = ["3.11", "3.12", "3.13"]
OURS = ["jax", "flax", "numpy", "torch", "transformers", "google-crc32c", "setuptools"]


def lines(file):
    return [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]


def declared():
    """Requirements of the packages and all their extras, without conditions of their own."""
    project = PYPROJECT["project"]
    texts = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    return {canonicalize_name(r.name): r for r in map(Requirement, texts)}


def versions(file, python):
    """Version by name on Linux and a Python."""
    environment = {"python_full_version": f"{python}.0", "python_version": python}
    environment |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    found = {}
    for line in lines(file):
        requirement = Requirement(line)
        if requirement.marker is None or Marker(str(requirement.marker)).evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert requirement.name not in found
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


@pytest.mark.parametrize("file", FILES)
def test_names_and_versions_stand_there_and_nothing_else(file):
    for line in lines(file):
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*( ; [^#@]*)?", line), line


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", FILES)
def test_every_declared_package_has_one_allowed_version(file, python):
    found = versions(file, python)
    for name, requirement in declared().items():
        assert found[name] in requirement.specifier, name
    assert set(OURS) <= set(found)


def test_each_lower_bound_is_the_version_that_is_tested():
    found = versions("constraints-lowest.txt", "3.11")
    for name, requirement in declared().items():
        (specifier,) = requirement.specifier
        assert found[name] == Version(specifier.version), f"{name}: make lock says {found[name]}"


def test_workflows_run_what_there_is():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    workflows = ROOT / ".github" / "workflows"
    jobs = yaml.safe_load((workflows / "nightly.yml").read_text())["jobs"]
    wanted = {row["target"] for row in jobs["nightly"]["strategy"]["matrix"]["include"]}
    assert wanted <= set(targets)
    jobs = yaml.safe_load((workflows / "test.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == PYTHONS
    steps = [step["run"] for step in jobs["test"]["steps"] if "run" in step]
    assert all((ROOT / step).is_file() for step in steps)
