"""Sparse autoencoders of activations that were extracted.

    python -m sae train    --activations_dir RUN --output_dir SAES

RUN is a folder, gs://bucket/prefix or s3://bucket/prefix. Exit status 0: done; 2: refused, with one
message; 74: the disk stayed full or the bucket could not be reached; 130 and 143: stopped by ctrl-C
or SIGTERM, and `--resume True` goes on.
"""

if __name__ == "__main__":
    from extraction.interruption import end_on_signals, leave

    end_on_signals("the same command with --resume True goes on")  # before slow imports

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from extraction.command_parser import BAD_INPUT, CommandParser
from extraction.progress import ProgressLine
from inference.settings.command_line import ended, make_parser, parse_settings

TRAIN = """Train sparse autoencoders on a run's rows, one for each hook point.

    python -m sae train --activations_dir ./activations --output_dir ./saes --d_sae 8x --k 64

Each autoencoder is a folder that SAELens reads, of the hook point's name. A --config file may list
several under `saes`, each with the settings that differ; all are trained on one read of the rows.
"""


def _train(arguments: Sequence[str]) -> int:
    from sae.training.run_settings import TrainSettings
    from sae.training.sweep import LIST, entries, read_sweep

    parser = make_parser(TrainSettings, TRAIN)

    def work() -> None:
        config = vars(parser.parse_args(arguments)).get("config")
        settings = parse_settings(parser, TrainSettings, arguments, apart=(LIST,))
        listed = None if config is None else read_sweep(Path(config))
        chosen = entries(settings.autoencoder(), listed)
        from sae.training.run import run  # and JAX, which takes seconds

        with ProgressLine() as progress:
            found = run(settings, chosen, progress)
        for name, sae in found.items():
            print(f"{settings.output_dir}/{name}: {sae}")

    return ended(work)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"train": _train}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: words of the command line; None: those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = CommandParser(
        prog="python -m sae",
        usage="%(prog)s COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    if not words:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return COMMANDS[parser.parse_args(words[:1]).command](words[1:])


if __name__ == "__main__":
    leave(main())
