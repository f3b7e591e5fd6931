"""A run that somebody else wrote: nothing outside its folder is read, written or followed."""

import contextlib
import dataclasses
import pickle
from pathlib import Path

import pytest

from extraction.__main__ import main
from extraction.errors import StoreError
from extraction.run.identity import RunLock, begin, read_identity
from extraction.run.records import CommittedFile
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.upload import upload_folder
from tests.extraction.hostile_runs import (
    READ,
    SECRET,
    not_waiting,
    put_in_place,
    read_all,
    rename_hook_point,
    tree,
    written,
)
from tests.extraction.written_runs import HOOKS, edit_json

REFUSED, DAMAGED = 2, 1

PATHS = {
    "above": "../../escaped",
    "absolute": "/{folder}/escaped",
    "through": "x/../../../escaped",
    "folder": "sub/escaped",
    "dots": "..",
    "empty": "",
    "backslash": "..\\escaped",
    "NUL": "esc\0aped",
    "control": "esc\x1b[2Japed",
    "surrogate": "esc\ud800aped",
    "long": "x" * 251,
}


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("name", PATHS)
def test_hook_points_that_are_paths_are_refused(tmp_path, capsys, name):
    storage = written(tmp_path)
    rename_hook_point(storage, PATHS[name].format(folder=str(tmp_path).strip("/")))
    before = tree(tmp_path)
    for command, line in READ.items():
        status, _, err = run(capsys, *line(tmp_path / "run", tmp_path / "out" / "deep"))
        assert status == (DAMAGED if command == "verify" else REFUSED), command
        assert err.count("\n") == (command != "verify")
    with pytest.raises(StoreError):
        read_all(tmp_path / "run")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", PATHS)
def test_hook_points_that_are_paths_are_refused_without_records(tmp_path, capsys, name):
    written(tmp_path)
    storage = LocalStorage(tmp_path / "run")
    (tmp_path / "run" / "_run").rename(tmp_path / "gone")
    evil = PATHS[name].format(folder=str(tmp_path).strip("/"))
    edit_json(
        storage,
        "metadata.json",
        lambda d: d.update(
            layers_extracted=[evil, HOOKS[1]],
            batches=[e | {"layer": evil if e["layer"] in (6, HOOKS[0]) else e["layer"]}
                     for e in d["batches"]],
        ),
    )  # fmt: skip
    before = tree(tmp_path)
    status, _, err = run(capsys, *READ["export"](tmp_path / "run", tmp_path / "out"))
    assert (status, err.count("\n")) == (REFUSED, 1)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("table", ["files", "outputs"])
def test_records_that_name_files_elsewhere_are_refused(tmp_path, capsys, name, table):
    storage = written(tmp_path)
    evil = PATHS[name].format(folder=str(tmp_path).strip("/"))
    if name == "folder":
        evil = "_run/run.json/" if table == "files" else "/"

    def point_elsewhere(record):
        (record["files"][HOOKS[0]] if table == "files" else record["outputs"])["file"] = evil

    edit_json(storage, "_run/commits/000001.json", point_elsewhere)
    before = tree(tmp_path)
    for command, line in READ.items():
        if command in ("repair", "quarantine"):
            continue  # which leave such a record out, and say so
        out = tmp_path / command
        status, _, err = run(capsys, *line(tmp_path / "run", out))
        if command == "report" and status == 0:  # the page says so
            page = out.with_suffix(".html")
            assert "Samples cannot be shown" in page.read_text("utf-8")
            page.unlink()
            continue
        assert status == (DAMAGED if command == "verify" else REFUSED), command
        assert err.count("\n") == (command != "verify")
        # What is whole may have been copied; nothing has been outside OUT.
        now = {n: c for n, c in tree(tmp_path).items() if n.split("/")[0] not in (command, "out")}
        assert now.items() >= before.items()
        assert {n for n in now.keys() - before.keys() if not n.startswith(tuple(READ))} == set()


PLACES = [
    "metadata.json",
    "layer_6_batch_000001.safetensors",
    "outputs.jsonl",
    "_run/run.json",
    "_run/commits/000001.json",
    "_run/outputs/000002.jsonl",
    "_run/self_check/0.json",
    "_run/quarantine/layer_6_batch_000009.safetensors",
    "_run/lock.00000",
    "_run/lock.00007",
    "_run",
    "_run/commits",
    "_run/outputs",
    "_run/self_check",
    "_run/quarantine",
]
HARMLESS = {"_run/lock.00000", "_run/lock.00007", "_run/quarantine", "outputs.jsonl"}
"""What `verify` says nothing of, as it is no part of what it vouches for."""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *((place, kind) for place in PLACES for kind in ("link", "FIFO")),
        ("layer_6_batch_000001.safetensors", "socket"),
        ("_run/commits/000001.json", "socket"),
    ],
)
def test_nothing_is_followed_or_waited_for(tmp_path, capsys, place, kind):
    storage = written(tmp_path)
    # A file that no record names, for the quarantine.
    storage.put_new("layer_6_batch_000009.safetensors", b"left over")
    outside = tmp_path / "outside" / Path(place).name
    path = tmp_path / "run" / place
    put_in_place(path, kind, outside)
    before = tree(tmp_path / "outside")
    with not_waiting(path):
        for command, line in READ.items():
            status, out, err = run(capsys, *line(tmp_path / "run", tmp_path / f"out {command}"))
            assert status in (0, DAMAGED, REFUSED), command
            assert err.count("\n") == (status == REFUSED), command
            if command == "verify":
                assert (status == 0) == (place in HARMLESS or "quarantine" in place)
            if command == "quarantine" and ("lock" in place or place == "_run/quarantine"):
                assert status == REFUSED
            assert "of another folder" not in out
        with contextlib.suppress(StoreError):
            read_all(tmp_path / "run")
        with contextlib.suppress(StoreError):
            RunLock(tmp_path / "run").release()
        with contextlib.suppress(StoreError, FileExistsError):
            storage.put_new(f"{place}/x" if not path.suffix else place, b"of the run")
        with contextlib.suppress(StoreError):
            storage.remove(f"{place}/0.json")
            storage.remove_left_overs()
    assert tree(tmp_path / "outside") == before
    copied = [c for n, c in tree(tmp_path).items() if not n.startswith("outside")]
    assert not [c for c in copied if isinstance(c, bytes) and b"of another folder" in c]


@pytest.mark.parametrize("place", ["_run/lock.00000", "_run/lock.00007"])
@pytest.mark.parametrize("kind", ["link", "FIFO", "socket"])
def test_a_lock_that_is_none_is_refused(tmp_path, place, kind):
    path = tmp_path / "run" / place
    path.parent.mkdir(parents=True)
    if kind == "link":
        path.symlink_to(tmp_path / "made by following")
    else:
        put_in_place(path, kind, tmp_path / "outside" / "x.txt")
    with not_waiting(path), pytest.raises(StoreError):
        RunLock(tmp_path / "run")
    assert not (tmp_path / "made by following").exists()


@pytest.mark.parametrize(
    "place", ["_run/self_check/0.json", "_run/outputs/000001.jsonl", "_run/commits"]
)
def test_upload_follows_no_links(tmp_path, fake_gcs, place):
    storage = written(tmp_path)
    path = tmp_path / "run" / place
    put_in_place(path, "link", tmp_path / "outside" / path.name)
    if path.is_file():
        path.write_bytes(SECRET)  # through the link
    with pytest.raises(StoreError, match="is a link"):
        upload_folder(storage, GcsStorage("gs://bucket/run", fake_gcs.client()))
    assert not [o for o in fake_gcs.objects("bucket").values() if SECRET in o.data]


def test_a_run_may_be_named_by_a_link(tmp_path, capsys):
    written(tmp_path)
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    assert read_all(tmp_path / "latest") == 12
    for command, line in READ.items():
        status, _, _ = run(capsys, *line(tmp_path / "latest", tmp_path / f"out {command}"))
        assert status == 0, command
    (tmp_path / "new").mkdir()
    (tmp_path / "link to new").symlink_to(tmp_path / "new")
    identity = read_identity(LocalStorage(tmp_path / "run"))
    assert identity is not None
    begin(LocalStorage(tmp_path / "link to new"), identity)
    assert (tmp_path / "new" / "_run" / "run.json").is_file()


def replace_file(storage: LocalStorage, hook: str, data: bytes) -> None:
    """Puts other bytes in the place of a hook point's first file; its record vouches for them."""

    def vouch(record):
        name = record["files"][hook]["file"]
        storage.replace(name, data)
        record["files"][hook] = dataclasses.asdict(CommittedFile.of(name, data))

    edit_json(storage, "_run/commits/000001.json", vouch)


class Called:
    """Leaves a file behind where its pickle is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("command", ["merge", "convert", "export"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("what", ["a pickle that calls", "no pickle", "rows of other samples"])
def test_files_that_a_record_vouches_for_are_parsed(tmp_path, capsys, command, hook, what):
    storage = written(tmp_path, "pickle")
    data = {
        "a pickle that calls": pickle.dumps(Called(tmp_path / "called"), 3),
        "no pickle": b"text",
        "rows of other samples": storage.get(f"{hook}_batch_000002.pkl"),
    }
    replace_file(storage, hook, data[what])
    status, _, err = run(capsys, *READ[command](tmp_path / "run", tmp_path / "out"))
    assert (status, err.count("\n")) == (REFUSED, 1)
    out = tree(tmp_path / "out") if (tmp_path / "out").exists() else {}
    assert not [n for n, content in out.items() if content == data[what] and "000001" in n]
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("command", ["merge", "convert"])
def test_output_lines_are_parsed_before_a_new_run_vouches_for_them(tmp_path, capsys, command):
    storage = written(tmp_path)

    def vouch(record):
        name = record["outputs"]["file"]
        storage.replace(name, b"no lines\n")
        record["outputs"] = dataclasses.asdict(CommittedFile.of(name, b"no lines\n"))

    edit_json(storage, "_run/commits/000001.json", vouch)
    status, _, err = run(capsys, *READ[command](tmp_path / "run", tmp_path / "out"))
    assert (status, err.count("\n")) == (REFUSED, 1)
    assert not [c for c in tree(tmp_path / "out").values() if c == b"no lines\n"]


@pytest.mark.parametrize("command", ["merge", "convert"])
def test_records_that_contradict_their_run_are_not_copied(tmp_path, capsys, command):
    storage = written(tmp_path)
    edit_json(
        storage,
        "_run/commits/000002.json",
        lambda record: record["statistics"]["layer_12"].update(rows=7),
    )
    status, _, err = run(capsys, *READ[command](tmp_path / "run", tmp_path / "out"))
    assert (status, err.count("\n")) == (REFUSED, 1)
    assert not (tmp_path / "out" / "_run" / "commits" / "000002.json").exists()
