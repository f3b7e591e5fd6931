import json
import subprocess
import sys
from pathlib import Path

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
    assert "numpy.ma" in loaded_by("extraction.verify")


def test_the_package_needs_neither_jax_nor_the_clouds_client():
    roots = {name.partition(".")[0] for name in loaded_by("extraction")}
    assert {"extraction", "numpy"} <= roots
    unneeded = {"jax", "jaxlib", "flax", "torch", "transformers", "ml_dtypes", "google", "requests"}
    unneeded |= {"qwen_hooks", "inference"}
    assert not roots & unneeded
