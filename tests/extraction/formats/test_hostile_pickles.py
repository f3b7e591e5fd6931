"""Hostile pickles are refused: by one exception, without running anything, in little memory."""

import json
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

import extraction
from extraction.errors import CorruptBatchError, UnsafePickleError
from extraction.formats.safe_pickle import parse_pickle
from tests.extraction.formats.false_batches import false_batches
from tests.extraction.formats.hostile_pickles import DAMAGED, FIRE, NUMPYS, code_cases, greedy_cases
from tests.extraction.formats.pickle_parts import document, good_batch, record


def corpus(canary: Path) -> dict[str, tuple[bytes, type]]:
    """Name to file and the exact type of its refusal."""
    code = code_cases(canary)
    types = {name: CorruptBatchError if name in DAMAGED else UnsafePickleError for name in code}
    files = {**code, **greedy_cases(), **false_batches()}
    return {name: (data, types.get(name, CorruptBatchError)) for name, data in files.items()}


CORPUS = corpus(Path("canary"))
NAMES = list(CORPUS)

FIRE_ALL = """
import pickle, sys
from pathlib import Path
for file in Path(sys.argv[1]).glob("*.pkl"):
    try:
        pickle.loads(file.read_bytes())
    except Exception:
        pass
"""

READ_ALL = """
import json, resource, sys
from pathlib import Path
from extraction.formats.safe_pickle import parse_pickle
files = {file.stem: file.read_bytes() for file in Path(sys.argv[1]).glob("*.pkl")}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
found = {}
for name, data in files.items():
    try:
        parse_pickle(data)
    except Exception as error:
        found[name] = type(error).__name__ + ": " + str(error)
print(json.dumps(found))
"""


def test_the_corpus_is_large():
    assert len(NAMES) >= 180
    assert set(NAMES) >= FIRE | DAMAGED


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused(name, tmp_path):
    canary = tmp_path / "canary"
    data, expected = CORPUS[name]
    data = code_cases(canary).get(name, data)
    imported = set(sys.modules)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(CorruptBatchError) as caught:
            parse_pickle(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(caught.value) is expected
    assert len(str(caught.value)) < 500
    assert not canary.exists()
    assert set(sys.modules) == imported
    assert peak < 10 * len(data) + (1 << 20)
    assert time.perf_counter() - started < 20  # a hundredfold of what it takes


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The corpus on disk, each with a canary of its own beside it, and the names by number."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(NAMES):
        code = code_cases(folder / f"{number}.canary")
        (folder / f"{number}.pkl").write_bytes(code.get(name, CORPUS[name][0]))
    return folder, {str(number): name for number, name in enumerate(NAMES)}


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={"PYTHONPATH": str(Path(extraction.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_all_are_refused_under_a_limit_of_memory(files):
    # Allocations that are never touched count here, unlike in a peak of resident memory.
    folder, names = files
    found = json.loads(run(READ_ALL, folder))
    assert set(found) == set(names)
    for number, name in names.items():
        _, expected = CORPUS[name]
        assert found[number].startswith(f"{expected.__name__}: "), name
        assert "MemoryError" not in found[number], name
    assert not list(folder.glob("*.canary"))


def test_plain_pickle_would_have_run_the_code(tmp_path):
    names = dict(enumerate(sorted(FIRE)))
    for number, name in names.items():
        data = code_cases(tmp_path / f"{number}.canary")[name]
        (tmp_path / f"{number}.pkl").write_bytes(data)
    run(FIRE_ALL, tmp_path)
    quiet = FIRE - {names[int(path.stem)] for path in tmp_path.glob("*.canary")}
    assert quiet <= NUMPYS  # which a later numpy may lack


def test_the_parts_of_the_corpus_make_a_good_batch():
    # The false batches above differ from this one by what their names say.
    for data in (good_batch(), document(record()), document()):
        batch = parse_pickle(data)
        assert len(batch.keys) == len(pickle.loads(data)["activations"])


def test_the_refusal_names_what_was_asked_for(tmp_path):
    with pytest.raises(UnsafePickleError, match=r"names 'os\.system', which no batch needs"):
        parse_pickle(code_cases(tmp_path / "canary")["os.system"])
