"""A list of the commands of this package; each is a module, and its `--help` lists its flags.

    python -m inference.distributed_inference_with_activations   all devices of one or many hosts
    python -m inference.simple_extraction_inference              one sample at a time

Both write the same rows. Begin with one of these:

    python -m inference.distributed_inference_with_activations --model_path MODEL \\
        --tasks_file TASKS --output_dir ./outputs --activations_dir ./activations
    python -m inference.simple_extraction_inference --help
"""

import argparse
import sys
from collections.abc import Sequence

from extraction.command_parser import BAD_INPUT, CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the commands; return 0 if --help was given, else 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = CommandParser(
        prog="python -m inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if given:
        parser.parse_args(given)  # ends the program: with the help, or with what is wrong
    parser.print_help(sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    raise SystemExit(main())
