"""Console scripts that an installation puts on the PATH; pyproject.toml names them.

A script runs its command as `python -m` does, so that the command reacts to ctrl-C before its
imports, which take seconds.
"""

import runpy


def _run(module: str) -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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
