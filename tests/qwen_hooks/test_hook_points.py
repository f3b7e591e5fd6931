"""Which layers may be asked for."""

import pytest

from qwen_hooks import ModelError
from qwen_hooks.hook_points import check_layers, default_layers


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([4], "layer 4 is out of range; this model has layers 0 to 3"),
        ([-1], "out of range"),
        ([1, 2, 1], "layer 1 is asked for more than once"),
        ([1.0], "whole number"),
        ([True], "whole number"),
        (["2"], "whole number"),
        ([], "no layer"),
    ],
)
def test_wrong_layers_are_refused_with_the_valid_range(layers, words):
    with pytest.raises(ModelError, match=words):
        check_layers(layers, 4)


def test_layers_come_back_in_ascending_order():
    assert check_layers([3, 0], 4) == (0, 3)
    assert check_layers(None, 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("layers", "defaults"),
    [(24, (6, 12, 18, 23)), (28, (7, 14, 21, 27)), (4, (1, 2, 3)), (2, (0, 1)), (1, (0,))],
)
def test_default_layers(layers, defaults):
    assert default_layers(layers) == defaults
