"""Which hook points there are, and what may be asked for."""

import pytest

from qwen_hooks import ModelError, QwenConfig, create_model_with_hooks
from qwen_hooks.hook_point_table import HOOK_POINTS
from qwen_hooks.hook_points import (
    blocks_needed,
    by_layer,
    check_layers,
    default_layers,
    select,
    sites,
)

CONFIG = QwenConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
)


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


def test_every_name_and_alias_selects_its_place():
    for site in sites(CONFIG):
        for form in (site.point.name, site.point.transformer_lens, site.point.hugging_face):
            if form is not None:
                assert select(form.format(i=site.layer), CONFIG) == (site.name,)
    of_model = [point for point in HOOK_POINTS if point.is_in(CONFIG)]
    blocks = sum(point.stage == "block" for point in of_model)
    assert len(sites(CONFIG)) == 12 * blocks + len(of_model) - blocks
    assert create_model_with_hooks(CONFIG).list_hook_points() == [s.name for s in sites(CONFIG)]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("layers.3", ["layer_3"]),
        ("layers.3.resid_post", ["layer_3"]),
        ("layers.{9..11}.mlp", ["layers.9.mlp", "layers.10.mlp", "layers.11.mlp"]),
        ("layers.{0,2}.{mlp,attention}", ["layers.0.attention", "layers.0.mlp",
                                          "layers.2.attention", "layers.2.mlp"]),
        (["layer_5", "layer_0", "layers.5", "norm"], ["layer_0", "layer_5", "norm"]),
        ("layers.7.mlp.*", ["layers.7.mlp.gate", "layers.7.mlp.up", "layers.7.mlp.neurons"]),
        ("blocks.*.attn.hook_z", [f"layers.{i}.attention.z" for i in range(12)]),
    ],
)  # fmt: skip
def test_patterns_select_many_each_once_in_the_order_of_computation(asked, names):
    assert list(select(asked, CONFIG)) == names


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("layers.3.mpl", r"did you mean .*layers\.3\.mlp"),
        ("layer_12", "layers 0 to 11"),
        ("layers.{10..12}.mlp", r"no hook point 'layers\.12\.mlp'"),
        ("layers.{3..1}.mlp", "is no range of blocks"),
        ("layers.{0..999999999}.mlp", "is no range of blocks"),
        ("layers.*.nothing", "there is no hook point"),
        ("", "there is no hook point"),
        ([6], "'layer_6'"),
        ([], "no hook point to capture"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is_near(asked, words):
    with pytest.raises(ModelError, match=words):
        select(asked, CONFIG)


def test_layers_and_hook_points_together():
    model = create_model_with_hooks(CONFIG, [3, 1], hook_points="layers.2.mlp")
    assert model.hook_points == ("layer_1", "layers.2.mlp", "layer_3")
    assert model.layers_to_extract == (1, 3)
    assert create_model_with_hooks(CONFIG, hook_points="norm").hook_points == ("norm",)
    assert by_layer(model.hook_points) == {
        1: {"resid_post": "layer_1"}, 2: {"mlp": "layers.2.mlp"}, 3: {"resid_post": "layer_3"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "blocks"),
    [(["embed_tokens"], 1), (["layer_0"], 1), (["layers.4.mlp"], 5), (["layer_2", "norm"], 12),
     (["logits"], 12)],
)  # fmt: skip
def test_no_block_runs_that_nobody_needs(names, blocks):
    assert blocks_needed(names, 12) == blocks
