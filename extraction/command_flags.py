"""The flags of the commands of `python -m extraction`, one function for each command."""

import argparse
from typing import Any

from extraction.exports import DTYPES, TARGETS
from extraction.exports import flags as export_flags
from extraction.maintenance.inspect_run import ROWS
from extraction.run.statistics import MAX_NORM_MULTIPLE

PLACE = "the run: folder, gs://bucket/prefix or s3://bucket/prefix"


def verify(command: argparse.ArgumentParser) -> None:
    """Add the flags of `verify`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    levels = command.add_mutually_exclusive_group()
    levels.add_argument(
        "--level",
        type=int,
        choices=(1, 2, 3),
        help="1: compare records with names and sizes, in a bucket also checksums; 2: also read"
        " every file; 3: also check sha256, unique keys, output lines and statistics (default: 2"
        " for a folder, 1 for a bucket)",
    )
    levels.add_argument(
        "--quick", action="store_const", const=1, dest="level", help="the same as --level 1"
    )
    command.add_argument(
        "--json", metavar="FILE", help="write the report as JSON to FILE; - prints it, without text"
    )


def inspect(command: argparse.ArgumentParser) -> None:
    """Add the flags of `inspect`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument(
        "--rows", type=int, default=ROWS, help=f"number of rows to show (default: {ROWS})"
    )
    command.add_argument(
        "--max_norm_multiple",
        type=float,
        default=MAX_NORM_MULTIPLE,
        metavar="M",
        help="count the rows whose norm is above M times the median norm, and show their positions"
        f" (default: {MAX_NORM_MULTIPLE:g})",
    )


def report(command: argparse.ArgumentParser) -> None:
    """Add the flags of `report`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument(
        "--output",
        default="report.html",
        metavar="FILE",
        help="file to write; it is replaced if it exists (default: report.html)",
    )


def repair(command: argparse.ArgumentParser) -> None:
    """Add the flags of `repair`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument(
        "--quarantine",
        action="store_true",
        help="move batch files that no record names, and records that cannot be read, to"
        " _run/quarantine/",
    )


def merge(command: argparse.ArgumentParser) -> None:
    """Add the flags of `merge`."""
    command.add_argument(
        "out", metavar="OUT", help="new folder or prefix; that of an interrupted merge continues it"
    )
    command.add_argument("sources", metavar="RUN", nargs="+", help="a run to merge, like OUT")


def convert(command: argparse.ArgumentParser) -> None:
    """Add the flags of `convert`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument(
        "out",
        metavar="OUT",
        help="new folder or prefix; that of an interrupted conversion continues it",
    )
    command.add_argument("--format", required=True, help="format to write: pickle or safetensors")
    command.add_argument(
        "--store_dtype",
        choices=("float32", "bfloat16"),
        help="dtype to store (default: the run's own, or float32 if the format cannot store it);"
        " bfloat16 rounds a float32 run",
    )


def export(command: argparse.ArgumentParser) -> None:
    """Add the flags of `export`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument("out", metavar="OUT", help="file or folder to write; must not exist")
    command.add_argument(
        "--to", required=True, choices=list(TARGETS), help="kind of file or folder to write"
    )
    command.add_argument(
        "--hook_points",
        nargs="+",
        metavar="NAME",
        help="names or block numbers, such as 6 12 (default: all)",
    )
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the activations (default: the run's own, or float32 if --to cannot hold it);"
        " pt and mi_crow hold bfloat16, which rounds a float32 run",
    )
    row_filters(command)
    for name, flag in export_flags().items():
        command.add_argument(f"--{name}", **flag)


def row_filters(command: argparse.ArgumentParser) -> None:
    """Add the flags that name the rows to leave out."""
    command.add_argument(
        "--max_norm_multiple",
        type=float,
        metavar="M",
        help="leave out rows whose norm is above M times the median norm of their hook point; with"
        " several hook points, at any of them. 10 leaves attention sinks out (default: keep all)",
    )
    command.add_argument(
        "--exclude_special",
        type=int,
        nargs="*",
        metavar="ID",
        help="leave out rows of special tokens: without ids, of those that the run records; with"
        " ids, such as --exclude_special 151643 151644, of these (default: leave out none)",
    )
    command.add_argument(
        "--skip_first",
        type=int,
        default=0,
        metavar="N",
        help="leave out the rows of the first N positions of each sample (default: 0)",
    )


def row_filters_of(settings: argparse.Namespace) -> dict[str, Any]:
    """Return arguments of `ActivationDataset.batches` from the flags of `row_filters`."""
    special = settings.exclude_special
    return {
        "max_norm_multiple": settings.max_norm_multiple,
        "exclude_special": False if special is None else special or True,
        "skip_first": settings.skip_first,
    }


def upload(command: argparse.ArgumentParser) -> None:
    """Add the flags of `upload`."""
    command.add_argument("folder", metavar="FOLDER", help="folder of the run")
    command.add_argument(
        "bucket", metavar="gs://bucket/prefix", help="where to upload it, or s3://bucket/prefix"
    )


def selftest(command: argparse.ArgumentParser) -> None:
    """Add the flags of `selftest`."""
    command.add_argument("address", metavar="gs://bucket/prefix", help="bucket or folder to check")
