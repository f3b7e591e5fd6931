"""Names of hook points, for reading without a model."""

from extraction.hook_point_names import spellings, transformer_lens_name
from qwen_hooks.hook_point_table import HOOK_POINTS


def test_the_names_are_those_of_the_model():
    for point in HOOK_POINTS:
        for i in (0, 6, 23):
            canonical = point.name.format(i=i)
            names = [point.names(i) for point in HOOK_POINTS if point.name.format(i=i) == canonical]
            common = [name for name in names[0] if all(name in others for others in names)]
            assert spellings([canonical]) == dict.fromkeys(common, canonical)
            theirs = point.transformer_lens or canonical
            assert transformer_lens_name(canonical) == theirs.format(i=i)


def test_others_stay_as_they_are():
    others = ["layer_x", "layers.6.other", "layers.6.mlp.", "other", "layer_6.", "layers.{i}"]
    for name in others:
        assert transformer_lens_name(name) == name
    assert spellings(others) == dict(zip(others, others, strict=True))
