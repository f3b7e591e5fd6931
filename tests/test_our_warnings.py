"""Warnings that point at our code fail a test; those of other packages do not."""

import warnings

import pytest

from tests.our_warnings import PACKAGES, PYPROJECT


def warn_in(module):
    """Warn as a call in `module` would that uses what is deprecated."""
    exec("warnings.warn('deprecated', ImportWarning)", {"__name__": module, "warnings": warnings})


@pytest.mark.parametrize("module", ["transformers.models.qwen2", "jax", "inference_engine"])
def test_a_warning_of_another_package_fails_nothing(module):
    warn_in(module)


@pytest.mark.parametrize("module", [*PACKAGES, "inference.engine.loop", "tests.oracle", "__main__"])
def test_a_warning_that_our_code_causes_is_an_error(module):
    with pytest.raises(ImportWarning):
        warn_in(module)


def test_code_without_a_module_is_ours():
    with pytest.raises(ImportWarning):
        exec("import warnings\nwarnings.warn('deprecated', ImportWarning)", {})


def test_every_package_that_is_installed_is_ours():
    found = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in found} <= set(PACKAGES)
