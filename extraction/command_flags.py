"""The flags of the commands of `python -m extraction`, a function for each."""

import argparse

from extraction.exports import DTYPES, TARGETS
from extraction.exports import flags as export_flags
from extraction.maintenance.inspect_run import ROWS
from extraction.run.statistics import MAX_NORM_MULTIPLE

PLACE = "folder, gs://bucket/prefix or s3://bucket/prefix"


def verify(command: argparse.ArgumentParser) -> None:
    """Add the flags of `verify`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    levels = command.add_mutually_exclusive_group()
    levels.add_argument(
        "--level",
        type=int,
        choices=(1, 2, 3),
        help="1: records, names, sizes, in a bucket also checksums; 2: reads every file; 3: also"
        " sha256, unique keys, output lines, statistics (default: 2 for a folder, 1 for a bucket)",
    )
    levels.add_argument(
        "--quick", action="store_const", const=1, dest="level", help="level 1: reads no activations"
    )
    command.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - prints it instead of the text"
    )


def inspect(command: argparse.ArgumentParser) -> None:
    """Add the flags of `inspect`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument(
        "--rows", type=int, default=ROWS, help=f"rows that are shown (default: {ROWS})"
    )
    command.add_argument(
        "--max_norm_multiple",
        type=float,
        default=MAX_NORM_MULTIPLE,
        metavar="M",
        help="rows with a norm above M times the median norm are counted, and where they stand is"
        f" told (default: {MAX_NORM_MULTIPLE:g})",
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
    command.add_argument("out", metavar="OUT", help="empty, or of the same merge before")
    command.add_argument("sources", metavar="RUN", nargs="+", help=PLACE)


def convert(command: argparse.ArgumentParser) -> None:
    """Add the flags of `convert`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument("out", metavar="OUT", help="empty, or of the same conversion before")
    command.add_argument("--format", required=True, help="to write: pickle or safetensors")
    command.add_argument(
        "--store_dtype",
        choices=("float32", "bfloat16"),
        help="to write; default: the run's own, or float32 where the format cannot hold it."
        " bfloat16 rounds a float32 run",
    )


def export(command: argparse.ArgumentParser) -> None:
    """Add the flags of `export`."""
    command.add_argument("source", metavar="RUN", help=PLACE)
    command.add_argument("out", metavar="OUT", help="file or folder to write; must not exist")
    command.add_argument("--to", required=True, choices=list(TARGETS), help="form to write")
    command.add_argument(
        "--hook_points", nargs="+", metavar="NAME", help="names, or blocks by number; default: all"
    )
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the activations; default: the run's own, or float32 where the form cannot hold it."
        " pt holds bfloat16, to which a float32 run is rounded",
    )
    for name, flag in export_flags().items():
        command.add_argument(f"--{name}", **flag)


def upload(command: argparse.ArgumentParser) -> None:
    """Add the flags of `upload`."""
    command.add_argument("folder", metavar="FOLDER", help="of the run")
    command.add_argument("bucket", metavar="gs://bucket/prefix", help="where it goes")


def selftest(command: argparse.ArgumentParser) -> None:
    """Add the flags of `selftest`."""
    command.add_argument("address", metavar="gs://bucket/prefix", help="or a folder")
