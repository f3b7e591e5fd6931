import json
import subprocess
import sys
from pathlib import Path

import pytest

import extraction


def loaded_by(module: str) -> list[str]:
    """Modules that importing this one loads, in a new process."""
    code = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(extraction.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(told.stdout)


def test_what_threads_need_at_once_is_loaded_before():
    """numpy loads it when it is first asked for, and two threads that ask at once can both fail."""
    assert "numpy.ma" in loaded_by("extraction.maintenance.verify")


def test_the_package_needs_neither_jax_nor_the_clouds_client():
    loaded = loaded_by("extraction.__main__")
    roots = {name.partition(".")[0] for name in loaded}
    assert {"extraction", "numpy"} <= roots
    unneeded = {"jax", "jaxlib", "flax", "torch", "transformers", "ml_dtypes", "google", "requests"}
    assert not roots & {*unneeded, "inference"}
    of_the_model = {name for name in loaded if name.partition(".")[0] == "qwen_hooks"}
    assert of_the_model <= {
        "qwen_hooks",
        "qwen_hooks.hook_point",
        "qwen_hooks.hook_point_table",
    }


def test_what_the_package_names_is_loaded_when_it_is_asked_for():
    assert "numpy" not in loaded_by("extraction")
    for name in {*extraction.__all__} - {"__version__"}:
        assert getattr(extraction, name).__name__ == name
    assert set(extraction.__all__) <= set(dir(extraction))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = extraction.no_such_name
