from extraction.exports.transformer_lens_names import transformer_lens_name
from qwen_hooks.hook_points import BLOCK_POINTS, MODEL_POINTS


def test_the_names_are_the_aliases_of_the_model():
    for point in (*BLOCK_POINTS, *MODEL_POINTS):
        for i in (0, 6, 23):
            assert point.transformer_lens is not None
            found = transformer_lens_name(point.name.format(i=i))
            assert found == point.transformer_lens.format(i=i)


def test_others_stay_as_they_are():
    for name in ("layer_x", "layers.6.other", "layers.6.mlp.", "other", "layer_6.", "layers.{i}"):
        assert transformer_lens_name(name) == name
