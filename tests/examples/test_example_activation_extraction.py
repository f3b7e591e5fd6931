"""The examples run, and print what they say."""

from examples.example_activation_extraction import main


def test_all_four_examples(capsys):
    main([])
    printed = capsys.readouterr().out
    assert "layer_4 (2, 4, 64) float32" in printed
    assert "last tokens of layer_4 (2, 64)" in printed
    assert printed.count("layer_2 (1, 64), layer_5 (1, 64), next token") == 5
    assert "layer 5: (8, 64)" in printed
    assert printed.count("norm of the last token") == 4
