"""Whose warnings fail a test: those that point at a line of our code."""

import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
PACKAGES = (*PYPROJECT["tool"]["pyright"]["include"], "tests")
"""All our packages: those whose types are checked, and the tests."""

OUR_MODULES = rf"({'|'.join(PACKAGES)}|__main__|<string>)(\.|$)"
"""Pattern of the modules that a warning may not point at; documentation's code has no module.

A call that another package deprecates points at its caller, so it counts as ours. What a package
warns of itself does not: nobody here can mend it.
"""
