"""Check, show, repair, merge, convert, export and upload runs.

    python -m extraction verify   RUN [--quick | --level 1|2|3] [--json FILE]
    python -m extraction inspect  RUN
    python -m extraction report   RUN --output report.html
    python -m extraction repair   RUN [--quarantine]
    python -m extraction merge    OUT RUN [RUN ...]
    python -m extraction convert  RUN OUT --format FORMAT [--store_dtype float32|bfloat16]
    python -m extraction export   RUN OUT --to npz|pt|memmap|huggingface|mi_crow [flags of the form]
    python -m extraction upload   FOLDER gs://bucket/prefix
    python -m extraction selftest gs://bucket/prefix

A run is a folder, gs://bucket/prefix or s3://bucket/prefix. Exit status 0: done; 2: refused, with
one message; 74: the disk stayed full or the bucket could not be reached; 130 and 143: stopped by
ctrl-C or SIGTERM, and the command can be repeated. `verify` also ends with 1: damaged; 3: no run,
or one that cannot be verified; 4: good so far, but incomplete.
"""

if __name__ == "__main__":
    from extraction.interruption import end_on_signals, leave

    end_on_signals("the command can be repeated")  # before numpy is loaded

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from extraction import command_flags
from extraction.command_parser import BAD_INPUT, NO_STORAGE, CommandParser
from extraction.errors import StorageUnavailableError, StoreError
from extraction.exports import export
from extraction.exports import flags as export_flags
from extraction.interruption import exit_status, raised_in_main
from extraction.maintenance.convert import convert
from extraction.maintenance.inspect_run import inspect_run
from extraction.maintenance.merge import merge
from extraction.maintenance.repair import repair
from extraction.maintenance.selftest import selftest
from extraction.maintenance.verify import verify
from extraction.printable import printable
from extraction.progress import ProgressLine
from extraction.report import report
from extraction.run.identity import read_identity
from extraction.run.records import CommitLog
from extraction.run.totals import RunTotals
from extraction.setting_names import flags_named, setting
from extraction.storage import CloudStorage, Storage, open_storage, scheme_of
from extraction.storage.file_operations import publish_over
from extraction.storage.local import LocalStorage
from extraction.writing.finalise import planned_batches


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: words of the command line; None: those of this process.
    """
    parser, words = _parser(), sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    if not all(word.strip() for word in words):  # as a path it would be the current folder
        parser.error("an argument is empty; is a shell variable unset?")
    settings = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        with raised_in_main(), flags_named(), ProgressLine() as progress:
            status = settings.run(settings, progress)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stopped:
        print("stopped; the command can be repeated", file=sys.stderr)
        return exit_status(stopped)
    except StorageUnavailableError as error:
        _tell(error)
        return NO_STORAGE
    except (StoreError, FileNotFoundError, PermissionError) as error:
        _tell(error)
        return BAD_INPUT
    except OSError as error:
        _tell(error)
        return NO_STORAGE


def _tell(error: Exception) -> None:
    """Print an error; an error of several lines names one differing setting on each."""
    print("\n".join(map(printable, f"error: {error}".split("\n"))), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m extraction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for entry in COMMANDS:
        name = entry.run.__name__.removeprefix("_")
        lines = "\n".join(
            f"  python -m extraction {name} {line}" for line in entry.examples.split("\n")
        )
        command = commands.add_parser(
            name,
            help=entry.help,
            description=f"{(entry.run.__doc__ or '').strip()}\n\nexamples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=entry.run)
        entry.add_flags(command)
    return parser


def _open(address: str, *, writable: bool = False) -> Storage:
    """Return the storage of an address that a user gave."""
    return open_storage(address, writable=writable)


def _open_run(address: str, *, writable: bool = False) -> Storage:
    """Return the storage of a run that exists.

    Raises:
        StoreError: the path does not exist.
    """
    storage = _open(address, writable=writable)
    if isinstance(storage, LocalStorage) and not storage.folder.exists():
        raise StoreError(f"{address}: no such folder; give a folder or gs://bucket/prefix of a run")
    return storage


def _verify(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Check that a run is whole. Reads only; changes nothing.

    Level 1 compares commit records with the listing and with metadata.json, and reads no
    activations. Level 2 reads every file and compares checksums. Level 3 also compares the files
    with each other: keys, output lines, statistics. The default is level 2 for a folder and level 1
    for a bucket, whose listing has checksums.

    Exit status 0: good; 1: damaged, and the files are named; 3: there is no run, or one that cannot
    be verified; 4: good so far, but batches are missing.
    """
    report = verify(_open_run(settings.source), settings.level, progress)
    document = json.dumps(report.document(), indent=1)
    if settings.json == "-":
        print(document)
        return report.exit_status
    if settings.json:
        Path(settings.json).write_text(document + "\n", encoding="utf-8")
    for line in report.lines():
        print(printable(line))
    return report.exit_status


def _inspect(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Show a run: model, state, shapes, statistics of each hook point, and the first rows."""
    lines = inspect_run(
        _open_run(settings.source),
        settings.rows,
        progress,
        max_norm_multiple=settings.max_norm_multiple,
    )
    for line in lines:
        print(printable(line))
    return 0


def _report(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Write a run as one HTML page: warnings, what the run is, norms as plots, sinks, samples.

    The page needs no other file and no network. It is made from commit records and a few files, so
    it takes seconds; it does not check the activations, which `verify` does.
    """
    path = Path(settings.output)
    if not path.parent.is_dir():
        raise StoreError(f"{setting('output', path)} cannot be written: {path.parent} is no folder")
    if path.exists() and not path.is_file():
        raise StoreError(f"{setting('output', path)} cannot be written: it is no file")
    page = report(_open_run(settings.source), progress)
    publish_over(path, page)
    print(printable(f"{path}: {len(page):,} bytes; open it in a browser"))
    return 0


def _repair(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Rewrite metadata.json from the run's commit records, or from its files if _run is missing,
    and outputs.jsonl if it is in the run's folder. Deletes nothing.

    Exit status 1: files are damaged that cannot be rewritten from others.
    """
    storage = _open_run(settings.source, writable=True)
    result = repair(storage, quarantine=settings.quarantine, progress=progress)
    for line in result.done:
        print(printable(line))
    for line in result.damage:
        print(printable(f"damaged: {line}"))
    return 1 if result.damage else 0


def _merge(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Merge runs with the same model, hook points, format and settings into one run, OUT.

    Files are copied as they are, under consecutive batch numbers; the sources stay. Rows with the
    same (task_id, sample_idx, position) in two runs are refused. If it is interrupted, the same
    command continues it.
    """
    _refuse_same(settings.out, settings.sources)
    out = _open(settings.out, writable=True)
    totals = merge(out, [_open_run(source) for source in settings.sources], progress)
    print(f"{len(settings.sources)} runs merged: {_summary(out, totals)}")
    return 0


def _convert(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Write a run in another file format to OUT, and compare every row with what is read back.

    The source stays. If it is interrupted, the same command continues it.
    """
    _refuse_same(settings.out, [settings.source])
    out = _open(settings.out, writable=True)
    source = _open_run(settings.source)
    totals = convert(source, out, settings.format, settings.store_dtype, progress)
    print(f"converted: {_summary(out, totals)}")
    return 0


def _export(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Write a run as one file or folder that numpy, torch, datasets or SAELens can read.

    OUT appears when it is complete; an interrupted export leaves nothing under that name.
    """
    named = {name: getattr(settings, name) for name in export_flags()}
    hook_points = settings.hook_points and [
        int(name) if name.isdecimal() else name for name in settings.hook_points
    ]
    exported = export(
        _open_run(settings.source),
        settings.out,
        settings.to,
        hook_points=hook_points,
        dtype=settings.dtype,
        progress=progress,
        **command_flags.row_filters_of(settings),
        **{name: value for name, value in named.items() if value is not None},
    )
    print(
        f"exported: {exported.samples:,} samples, {exported.rows:,} rows for each of"
        f" {len(exported.hook_points)} hook points, in {settings.out}"
    )
    for note in exported.notes:
        print(note)
    return 0


def _upload(settings: argparse.Namespace, progress: ProgressLine) -> int:
    """Upload the batches of a folder that the bucket does not have yet; the folder stays as it is.

    If it is interrupted, the same command continues it. Nothing in the bucket is overwritten.
    """
    from extraction.writing.upload import upload_folder

    local, cloud = _open_run(settings.folder), _open(settings.bucket, writable=True)
    if not isinstance(cloud, CloudStorage):
        raise StoreError(
            f"{settings.bucket!r} must look like gs://bucket/prefix or s3://bucket/prefix"
        )
    total, before = len(CommitLog(local).batch_ids()), len(CommitLog(cloud).batch_ids())
    done = 0

    def count(_record: object) -> None:
        nonlocal done
        done += 1
        progress("batches uploaded", done, total)

    totals = upload_folder(local, cloud, count)
    uploaded = len(totals) - before
    print(f"{uploaded} of {total} batches uploaded, the others existed: {_summary(cloud, totals)}")
    return 0


def _selftest(settings: argparse.Namespace, _progress: ProgressLine) -> int:
    """Check that a bucket or folder gives the guarantees that the commit protocol needs.

    Writes a few files below <prefix>/_selftest-<random>/ and removes them at the end.

    Exit status 0: all checks passed; 1: a check failed.
    """
    try:
        return 0 if selftest(settings.address) else 1
    except ImportError:
        _open(settings.address)  # says what to install
        raise


def _refuse_same(out: str, sources: Sequence[str]) -> None:
    for source in sources:
        if _canonical(source) == _canonical(out):
            raise StoreError(f"OUT is {source} itself; give another folder or prefix")


def _canonical(address: str) -> str:
    if scheme_of(address) is not None:
        return address.rstrip("/")
    return str(Path(address).expanduser().resolve())


def _summary(storage: Storage, totals: RunTotals) -> str:
    """Return a line about a run that was just written."""
    identity = read_identity(storage)
    assert identity is not None
    planned = planned_batches(storage, identity)
    state = "complete" if planned == len(totals) else f"incomplete, of {planned or 'unknown many'}"
    return (
        f"{len(totals)} batches ({state}), {totals.n_rows:,} rows for each of"
        f" {len(identity.hook_points)} hook points, in {storage.address}"
    )


class Command(NamedTuple):
    """A command: its function, its help in one line, examples of its arguments, and its flags."""

    run: Callable[..., int]
    help: str
    examples: str
    add_flags: Callable[[argparse.ArgumentParser], None]


COMMANDS = (
    Command(
        _verify,
        "check that a run is whole",
        "./activations\n./activations --quick\ngs://bucket/run --level 3 --json report.json",
        command_flags.verify,
    ),
    Command(
        _inspect,
        "show what a run holds",
        "./activations\ngs://bucket/run --rows 10",
        command_flags.inspect,
    ),
    Command(
        _report,
        "write a run as one HTML page",
        "./activations --output report.html\ngs://bucket/run --output report.html",
        command_flags.report,
    ),
    Command(
        _repair,
        "rewrite metadata.json",
        "./activations\n./activations --quarantine",
        command_flags.repair,
    ),
    Command(
        _merge,
        "merge runs of the same model",
        "./all ./host0 ./host1\ngs://bucket/all gs://bucket/part0 gs://bucket/part1",
        command_flags.merge,
    ),
    Command(
        _convert,
        "convert a run to another file format",
        "./activations ./fast --format safetensors\n"
        "./activations ./half --format safetensors --store_dtype bfloat16",
        command_flags.convert,
    ),
    Command(
        _export,
        "write a run as files for other programs",
        "./activations acts.npz --to npz\n"
        "gs://bucket/run ./cached --to huggingface --context_size 128",
        command_flags.export,
    ),
    Command(
        _upload,
        "upload a folder's run to a bucket",
        "./activations gs://bucket/run",
        command_flags.upload,
    ),
    Command(
        _selftest,
        "check that a bucket is safe for commits",
        "gs://bucket/prefix\n./folder",
        command_flags.selftest,
    ),
)


if __name__ == "__main__":
    leave(main())
