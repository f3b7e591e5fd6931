"""Every code block of the founding documents runs in its translated form.

docs/founding/001.md to 004.md have the code, in the order of the documents; docs/founding.md says
of each block what differs.
"""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from extraction.__main__ import main as extraction
from inference.distributed_inference_with_activations import main as distributed
from inference.simple_extraction_inference import main as simple
from sae.__main__ import main as sae
from tests.extraction.bucket_environment import bucket  # noqa: F401
from tests.fake_gcs.fixture import fake_gcs  # noqa: F401

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = {"001": 20, "002": 10, "003": 11, "004": 18}
"""Code blocks of each document; those of 002 and 003, which mark none, as its text divides them."""

GIVEN = ("MODEL", "CORPUS", "SAE")
"""Variables that the pages do not set."""

PROGRAMS: dict[str, Callable[[list[str]], int | None]] = {
    "-m inference.simple_extraction_inference": simple,
    "-m inference.distributed_inference_with_activations": distributed,
    "-m extraction": extraction,
    "-m sae": sae,
}
ELSEWHERE = {
    "python examples/example_activation_extraction.py": (
        "tests/examples/test_example_activation_extraction.py"
    )
}
"""Commands that take long, and the test that runs them."""

LAYERS = {"5": "2", "6": "0", "12": "1", "15": "1", "18": "2", "23": "3"}
"""Layers of the demo's model of 4, for those that the pages name of a model of 24."""


def smaller(code: str) -> str:
    """Code of documents 002 and 004 for the demo's model."""
    numbers = "|".join(LAYERS)
    code = re.sub(rf"\b(layers?[._])({numbers})(?!\d)", lambda m: m[1] + LAYERS[m[2]], code)
    lists = rf"(layers?\w*\W+)((?:(?:{numbers})\b(?:, | )?)+)"
    return re.sub(
        lists, lambda m: m[1] + re.sub(r"\d+", lambda number: LAYERS[number[0]], m[2]), code
    )


def sections(document: str) -> dict[str, str]:
    """The sections of a page by their titles."""
    page = (DOCS / f"founding/{document}.md").read_text(encoding="utf-8")
    return {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}


def run_page(document: str, given: dict) -> dict:
    """Run a page's code from top to bottom; return its variables."""
    for title, section in sections(document).items():
        for language, code in re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL):
            code = smaller(code) if document in ("002", "004") else code
            if language == "python":
                exec(compile(code, f"docs/founding/{document}.md: {title}", "exec"), given)
            else:
                assert language == "bash"
                run_commands(code, given)
    return given


def run_commands(code: str, given: dict) -> None:
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        if line in ELSEWHERE:
            assert (DOCS.parent / ELSEWHERE[line]).exists()
            continue
        (program,) = (name for name in PROGRAMS if line.startswith(f"python {name} "))
        words = shlex.split(line.removeprefix(f"python {program}"))
        assert not PROGRAMS[program]([given[word] if word in GIVEN else word for word in words])


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Variables of the pages, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    texts = [f"Text number {n} is about {topic}." for n in range(20) for topic in ("cats", "Paris")]
    corpus = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus.jsonl").write_text(corpus)
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    tasks = {f"task_{n}": {"train": [pair], "test": [pair]} for n in range(4)}
    (tmp_path / "arc_tasks.json").write_text(json.dumps(tasks))
    return {"CORPUS": "corpus.jsonl"}


def test_001(given, demo_checkpoint):
    run_page("001", given | {"MODEL": str(demo_checkpoint)})


def test_002(given, demo_checkpoint):
    run_page("002", given | {"MODEL": str(demo_checkpoint)})


def test_003(given, demo_checkpoint):
    folder = Path("gemma-scope-2b-pt-res/layer_2/width_16k/average_l0_82")
    folder.mkdir(parents=True)
    source = np.random.default_rng(0)
    shapes = {"W_enc": (112, 64), "W_dec": (64, 112), "b_enc": 64, "b_dec": 112, "threshold": 64}
    arrays = {n: source.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    np.savez(folder / "params.npz", **arrays | {"threshold": np.abs(arrays["threshold"])})
    run_page("003", given | {"MODEL": str(demo_checkpoint), "SAE": str(folder)})


def test_004(given, demo_checkpoint, bucket):  # noqa: F811
    run_page("004", given | {"MODEL": str(demo_checkpoint)})


@pytest.mark.parametrize("document", BLOCKS)
def test_every_block_has_code(document):
    found = sections(document)
    assert len(found) == BLOCKS[document]
    assert all(re.search(r"```(python|bash)\n", section) for section in found.values())


@pytest.mark.parametrize("document", BLOCKS)
def test_the_table_has_every_block_and_what_differs(document):
    page = (DOCS / "founding.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if f"](founding/{document}.md#" in line]
    numbers = [re.findall(rf"^\[(.*)\]\(founding/{document}\.md#", row[2])[0] for row in rows]
    assert numbers == [title.split()[0].rstrip(".") for title in sections(document)]
    assert all(len(row) == 4 and row[3].strip(" |") for row in rows)
