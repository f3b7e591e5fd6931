"""What the commands share: flags to settings, logging, and errors to exit statuses.

Exit status 0: done; 2: bad input, refused before anything was computed or written, with one
message; 5: the self-check disagrees; 74: the disk stayed full or the cloud could not be reached;
130 and 143: stopped by ctrl-C or SIGTERM. After the last three `--resume True` goes on.
"""

import logging
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import TypeVar

from transformers import HfArgumentParser

from extraction.command_parser import BAD_INPUT, NO_STORAGE, SELF_CHECK_FAILED, CommandParser
from extraction.errors import StorageUnavailableError, StoreError
from extraction.interruption import exit_status
from extraction.setting_names import flags_named
from inference.engine.self_check import SelfCheckError
from inference.errors import InputError
from inference.settings.commands import ExtractionSettings
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
    with flags_named():
        return _run(run, parser, arguments)


def _run(run: Callable[[SettingsT], None], parser: _Parser, arguments: Sequence[str] | None) -> int:
    """Runs the work with the settings of the flags, and gives the exit status."""
    try:
        settings, unknown = parser.parse_args_into_dataclasses(
            list(sys.argv[1:] if arguments is None else arguments),
            return_remaining_strings=True,  # else they raise a plain ValueError
            look_for_args_file=False,
        )
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        run(settings)
        sys.stdout.flush()  # a signal from here on ends the process at once
    except KeyboardInterrupt as stopped:
        print(stopped if str(stopped) else "stopped", file=sys.stderr)
        return exit_status(stopped)
    except SelfCheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return SELF_CHECK_FAILED
    except StorageUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_STORAGE
    except (InputError, ModelError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0
