"""What the commands share: flags to settings, logging, and errors to exit statuses.

Exit status 0: done; 2: bad input, refused before anything was computed or written, with one
message; 74: the disk stayed full or the cloud could not be reached, and 143: asked to stop by
SIGTERM; after both, `--resume` goes on.
"""

import logging
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import TypeVar

from transformers import HfArgumentParser

from extraction.command_parser import BAD_INPUT, NO_STORAGE, TERMINATED, CommandParser
from extraction.errors import StorageUnavailableError, StoreError
from inference.errors import InputError
from inference.interruption import Interrupted
from inference.settings import ExtractionSettings
from qwen_hooks.errors import ModelError

SettingsT = TypeVar("SettingsT", bound=ExtractionSettings)


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults after each flag, and the description's own lines."""


class _Parser(CommandParser, HfArgumentParser):
    """Flags from the fields of a dataclass."""


def run_command(
    run: Callable[[SettingsT], None],
    settings_type: type[SettingsT],
    description: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a command and gives its exit status.

    Args:
        run: the work.
        settings_type: dataclass of the flags.
        description: for `--help`.
        arguments: instead of the process's own.
    """
    parser = _Parser(
        [settings_type],  # pyright: ignore[reportArgumentType]
        description=description,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("httpx", "jax", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings, unknown = parser.parse_args_into_dataclasses(
            list(sys.argv[1:] if arguments is None else arguments),
            return_remaining_strings=True,  # else they raise a plain ValueError
            look_for_args_file=False,
        )
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        run(settings)
    except Interrupted:
        print("stopped; --resume goes on from here", file=sys.stderr)
        return TERMINATED
    except StorageUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_STORAGE
    except (InputError, ModelError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0
