"""`outputs.jsonl` appears whole at a clean end, and otherwise not at all."""

import json

import pytest

from extraction.errors import ExistingRunError, StoreError
from extraction.storage import file_operations
from inference.inputs.samples import Sample
from inference.outputs import OutputsFile, output_line, skipped_line

HARD_TEXT = 'zwölf 🙂\n\r\t"\\\u2028\x85\0'


@pytest.fixture
def sample():
    return Sample(
        number=7,
        task_id="a/b",
        sample_idx=3,
        prompt=HARD_TEXT,
        token_ids=(4, 5, 5),
        positions=(2,),
        extra={"label": ["LOC"], "prediction": 1},
    )


def test_line_of_a_sample_that_ran(sample):
    assert output_line(sample, [9, 500], "out", "stop") == {
        "task_id": "a/b",
        "sample_idx": 3,
        "prompt": HARD_TEXT,
        "prompt_token_ids": [4, 5, 5],
        "generated_token_ids": [9, 500],
        "text": "out",
        "finish_reason": "stop",
        "label": ["LOC"],
        "prediction": 1,
    }


def test_line_of_a_sample_that_could_not_run(sample):
    assert skipped_line(sample, "too long") == {
        "task_id": "a/b",
        "sample_idx": 3,
        "prompt": HARD_TEXT,
        "prompt_token_ids": [4, 5, 5],
        "generated_token_ids": [],
        "text": None,
        "finish_reason": "skipped",
        "reason": "too long",
        "label": ["LOC"],
        "prediction": 1,
    }


def test_file_appears_whole_at_a_clean_end(tmp_path, sample):
    written = [output_line(sample, [9], HARD_TEXT, "length"), skipped_line(sample, "empty")]
    with OutputsFile(tmp_path / "new" / "folder") as outputs:
        for line in written:
            outputs.write(line)
            assert not outputs.path.exists()
    assert outputs.path == tmp_path / "new" / "folder" / "outputs.jsonl"
    assert list(outputs.path.parent.iterdir()) == [outputs.path]
    content = outputs.path.read_bytes().decode("utf-8")
    assert content.endswith("\n")
    assert [json.loads(line) for line in content.removesuffix("\n").split("\n")] == written


def test_run_without_samples_has_an_empty_file(tmp_path):
    with OutputsFile(tmp_path) as outputs:
        pass
    assert outputs.path.read_bytes() == b""


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, sample, kind):
    def run():
        with OutputsFile(tmp_path) as outputs:
            outputs.write(output_line(sample, [9], "out", "stop"))
            raise kind

    with pytest.raises(kind):
        run()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, sample, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    def run():
        with OutputsFile(tmp_path) as outputs:
            outputs.write(output_line(sample, [9], "out", "stop"))
            monkeypatch.setattr(file_operations.os, "fsync", fail)

    with pytest.raises(OSError, match="No space left"):
        run()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_only_when_the_run_starts(tmp_path):
    OutputsFile(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "outputs.jsonl"
    path.write_text("other")
    with pytest.raises(ExistingRunError, match=r"outputs\.jsonl exists already.*output_dir"):
        OutputsFile(tmp_path)
    assert path.read_text() == "other"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("other")
    with pytest.raises(StoreError, match="is a file"):
        OutputsFile(tmp_path / "file")
