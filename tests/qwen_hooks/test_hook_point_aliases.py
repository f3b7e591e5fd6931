"""Every name of a hook point in another library against that library's own value under it.

`tests/peers/write_values.py` wrote the values, in the libraries' own environment.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen_hooks import Checkpoint, load_params
from qwen_hooks.hook_point_table import HOOK_POINTS
from qwen_hooks.hook_points import sites
from tests.hook_point_errors import every_point
from tests.oracle import row_error
from tests.peers.prompt import PROMPT, VALUES

TOLERANCE = 1e-5
ONLY_IN_THE_BRIDGE = ("ln1.hook_out", "ln2.hook_out", "ln_final.hook_out")


@pytest.fixture(scope="module")
def ours():
    """What this project computes of the prompt, `[S, ...]` by canonical name."""
    checkpoint = Checkpoint.open(VALUES / "checkpoint")
    ids = jnp.array([PROMPT], jnp.int32)
    _, activations = every_point(checkpoint).apply(
        load_params(checkpoint), ids, return_activations=True
    )
    return checkpoint.config, {name: np.asarray(value[0]) for name, value in activations.items()}


def named(library, site):
    """The name in the library of a hook point, or None."""
    if library in ("transformer_bridge", "hooked_transformer"):
        name = site.point.transformer_lens
        if library == "hooked_transformer" and name.endswith(ONLY_IN_THE_BRIDGE):
            return None
    else:
        name = site.point.hugging_face
        if library == "nnsight" and name is not None:
            name = f"model.{name}" if name.endswith(".input") else f"model.{name}.output"
    return None if name is None else name.format(i=site.layer)


@pytest.mark.parametrize(
    "library", ["hugging_face", "nnsight", "transformer_bridge", "hooked_transformer"]
)
def test_every_alias_names_the_value_that_the_library_has_there(ours, library):
    config, values = ours
    theirs = load_file(VALUES / f"{library}.safetensors")
    errors = {}
    for site in sites(config):
        name = named(library, site)
        if name is not None:
            value = theirs[name]
            if site.point.key == "pattern":  # theirs is [heads, queries, keys]
                value = value.swapaxes(0, 1)
            value = value.reshape(values[site.name].shape)
            errors[name] = row_error(values[site.name], value)
    assert not {name: error for name, error in errors.items() if not error <= TOLERANCE}
    assert len(errors) > len(sites(config)) / 2


def test_the_page_lists_what_transformer_lens_changes_in_weights():
    page = (Path(__file__).parents[2] / "docs/hook_points.md").read_text(encoding="utf-8")
    (told,) = (line for line in page.splitlines() if line.startswith("Other values there: "))
    processed = json.loads((VALUES / "processed.json").read_text(encoding="utf-8"))
    changed = set().union(*processed.values())
    aliased = {  # of Qwen2, which these libraries were asked for
        p.transformer_lens.format(i=0): p
        for p in HOOK_POINTS
        if p.transformer_lens and not p.when.startswith("post_norms")
    }
    expected = [
        f"`{aliased[name].name.replace('{i}', 'i')}`" for name in aliased if name in changed
    ]
    assert sorted(told.removeprefix("Other values there: ").rstrip(".").split(", ")) == sorted(
        expected
    )
