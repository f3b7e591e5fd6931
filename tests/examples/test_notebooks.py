"""The notebooks under examples/notebooks run top to bottom, on the tiny model.

Their code cells are executed in order in one namespace, in a process of its own, and the value of a
cell's last expression is shown as a notebook shows it: by `_repr_html_` where there is one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))

RUN = """
import ast, json, sys
names = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        html = getattr(value, "_repr_html_", None)
        print(repr(value) if html is None else html())
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
    if path.stem == "a_run_and_its_sinks":
        assert '"rows": 120, "rows_at_position_0": 120' in done.stdout
        with_sinks, without = (
            float(part.split("%")[0].split()[-1])
            for part in done.stdout.partition("first component:")[2].split(",")[:2]
        )
        assert with_sinks > 2 * without
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "120 at position 0" in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == [
        "a_run_and_its_sinks",
        "first_rows",
        "positions_and_steering",
    ]
