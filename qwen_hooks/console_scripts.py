"""Console scripts that an installation puts on the PATH; pyproject.toml names them.

A script runs its command as `python -m` does, so that the command reacts to ctrl-C before its
imports. The scripts are in this package because no other project has one called `qwen_hooks`.
`inference`, `extraction`, `launch` and `sae` are names of other projects' packages too, and
installing one of those overwrites our files.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

OUR_FILES = {
    "inference": "settings/commands.py",
    "extraction": "run/records.py",
    "launch": "launch_commands.py",
    "sae": "autoencoder.py",
}
"""One of our files in each package whose name other projects use too."""


def _run(module: str) -> None:
    told = foreign_packages()
    if told is not None:
        sys.exit(f"error: {told}")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def foreign_packages() -> str | None:
    """Return one line about a package of ours that another project's overwrote, or None."""
    for name, file in OUR_FILES.items():
        spec = importlib.util.find_spec(name)
        places = (spec.submodule_search_locations or []) if spec else []
        if not any((Path(place) / file).is_file() for place in places):
            found = ", ".join(places) or "missing"
            return (
                f"the package {name!r} ({found}) is not this project's: another package of that"
                " name was installed over it; install qwen-activation-extraction in an environment"
                " of its own"
            )
    return None


def extract() -> None:
    """Run `python -m inference.distributed_inference_with_activations`."""
    _run("inference.distributed_inference_with_activations")


def extract_simple() -> None:
    """Run `python -m inference.simple_extraction_inference`."""
    _run("inference.simple_extraction_inference")


def activations() -> None:
    """Run `python -m extraction`."""
    _run("extraction")


def launch() -> None:
    """Run `python -m launch`."""
    _run("launch")


def sae() -> None:
    """Run `python -m sae`."""
    _run("sae")
