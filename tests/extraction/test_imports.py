import json
import subprocess
import sys
from pathlib import Path

import extraction

CODE = "import extraction, json, sys; print(json.dumps(sorted(sys.modules)))"


def test_the_package_needs_neither_jax_nor_the_clouds_client():
    modules = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(extraction.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    roots = {name.partition(".")[0] for name in json.loads(modules.stdout)}
    assert {"extraction", "numpy"} <= roots
    unneeded = {"jax", "jaxlib", "flax", "torch", "transformers", "ml_dtypes", "google", "requests"}
    unneeded |= {"qwen_hooks", "inference"}
    assert not roots & unneeded
