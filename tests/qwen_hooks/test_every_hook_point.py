"""Every hook point against Hugging Face's torch model, in every way in which the model runs."""

import pytest

from qwen_hooks import Checkpoint
from tests.hook_point_errors import SHAPES, TOLERANCE, WAYS, errors, theirs_of
from tests.oracle import make_checkpoint


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request, tmp_path_factory):
    return Checkpoint.open(make_checkpoint(tmp_path_factory.mktemp("c"), **SHAPES[request.param]))


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return theirs_of(checkpoint)


@pytest.mark.parametrize("way", WAYS)
def test_it_equals_torch(checkpoint, theirs, way):
    found = errors(checkpoint, theirs, way)
    assert not {name: error for name, error in found.items() if not error < TOLERANCE}
