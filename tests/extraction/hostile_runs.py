"""Runs of two units that somebody else has tampered with, and what may be seen of the world around.

A run lies in `folder/run`; `folder/outside` is what no command may read, change or follow.
"""

import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from extraction.formats import FORMATS
from extraction.reading.dataset import ActivationDataset
from extraction.run.records import CommittedFile
from extraction.storage.local import LocalStorage
from extraction.writing.finalise import write_metadata
from tests.extraction.written_runs import HOOKS, edit_json, write_run

SECRET = b'{"secret": "of another folder"}'
PATIENCE = 20.0
"""Seconds that a command has on a busy machine before it counts as waiting."""


def written(folder: Path, file_format: str = "safetensors") -> LocalStorage:
    """A good run, with a self-check and output lines."""
    storage = write_run(folder / "run", file_format, units=2)
    storage.put_new("_run/self_check/0.json", b'{"rows": 4, "largest_error": 0.0}')
    write_metadata(storage)
    assert isinstance(storage, LocalStorage)
    return storage


def rename_hook_point(storage: LocalStorage, new: str, old: str = HOOKS[0]) -> None:
    """Gives a hook point another name in everything that names it, but in names of files."""
    file_format = FORMATS["safetensors"]

    def renamed(record: dict) -> None:
        entry = record["files"][old]
        block = file_format.parse(storage.get(entry["file"]), None).block()
        values = {new: block.activations[old]}
        with contextlib.suppress(UnicodeEncodeError):  # no file can hold half of a surrogate pair
            data = file_format.serialise(new, dataclasses.replace(block, activations=values)).data
            storage.replace(entry["file"], data)
            record["files"][old] = dataclasses.asdict(CommittedFile.of(entry["file"], data))
        for table in ("files", "statistics"):
            record[table] = {new if h == old else h: e for h, e in record[table].items()}

    for name in storage.names("_run/commits/"):
        edit_json(storage, name, renamed)
    edit_json(
        storage,
        "_run/run.json",
        lambda run: run.update(hook_points=[new if h == old else h for h in run["hook_points"]]),
    )


def put_in_place(path: Path, kind: str, outside: Path) -> None:
    """Puts something else in the place of a file or folder.

    Args:
        path: of it.
        kind: "link", "FIFO" or "socket".
        outside: where a link leads; what was at `path` is moved there, else there is `SECRET`.
    """
    path.parent.mkdir(exist_ok=True)
    outside.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(outside)
    elif not path.suffix:
        outside.mkdir()
        (outside / "0.json").write_bytes(SECRET)
    else:
        outside.write_bytes(SECRET)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made, _working_in(path.parent):
            made.bind(path.name)  # a whole path may be longer than the system takes


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def not_waiting(fifo: Path) -> Iterator[None]:
    """Raises TimeoutError for who waits for a FIFO, which is let go first."""

    def let_go(*_):
        with contextlib.suppress(OSError):
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        raise TimeoutError(f"something waits for {fifo}")

    before = signal.signal(signal.SIGALRM, let_go)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: contents of files, targets of links, kinds of all else."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else str(path.lstat().st_mode)
    return found


READ = {
    "verify": lambda run, out: ["verify", run, "--level", "3"],
    "inspect": lambda run, out: ["inspect", run],
    "report": lambda run, out: ["report", run, "--output", f"{out}.html"],
    "repair": lambda run, out: ["repair", run],
    "quarantine": lambda run, out: ["repair", run, "--quarantine"],
    "merge": lambda run, out: ["merge", out, run],
    "convert": lambda run, out: ["convert", run, out, "--format", "npz"],
    "export": lambda run, out: ["export", run, f"{out}.npz", "--to", "npz"],
}
"""Command lines of all commands that read a run, by name."""


def read_all(folder: Path) -> int:
    """Every row through the dataset; how many there are."""
    return sum(len(batch["layer_6"]) for batch in ActivationDataset(folder, HOOKS).batches(4))
