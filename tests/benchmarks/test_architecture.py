"""The architecture is counted by rules that small sources show."""

from pathlib import Path

from benchmarks.architecture import code_lines, import_circles, long_functions, traced_files

SOURCE = '''"""Module.

More of it.
"""

# A comment.
import os  # with one behind it


def function(
    argument,
):
    """Docstring."""

    return """a text
    of two lines"""


VALUE = 1
"""What VALUE is."""
'''


def test_blank_lines_comments_and_docstrings_are_no_code():
    assert code_lines(SOURCE) == 1 + 3 + 2 + 1


def test_long_functions_are_named_without_their_docstring():
    body = "".join(f"    x = {i}\n" for i in range(81))
    docstring = '    """' + "\n" * 100 + '    """\n'
    assert list(long_functions(f"def f():\n{docstring}{body}")) == [("f", 81)]
    assert not list(long_functions(f"def f():\n{docstring}{body[10:]}".replace("x = 80", "")))


def write(folder: Path, **sources: str) -> None:
    for name, source in sources.items():
        (folder / "inference" / f"{name}.py").write_text(source)


def test_circles_are_found_unless_they_are_for_types_or_inside_functions(tmp_path):
    (tmp_path / "inference").mkdir()
    write(tmp_path, __init__="", a="from inference import b", b="import inference.c", c="")
    assert import_circles(tmp_path) == []
    write(tmp_path, c="def f():\n    import inference.a")
    assert import_circles(tmp_path) == []
    write(tmp_path, c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import inference.a")
    assert import_circles(tmp_path) == []
    write(tmp_path, c="from inference.a import x")
    assert import_circles(tmp_path) == [("inference.a", "inference.b", "inference.c")]


def test_the_files_on_a_runs_way_are_those_that_are_called():
    files = traced_files(Path.cwd())
    assert "inference/distributed_inference_with_activations.py" in files
    assert "qwen_hooks/decoder_layer.py" in files
    assert any(name.startswith("extraction/storage/") for name in files)
    assert not any(name.startswith("launch/") for name in files)
