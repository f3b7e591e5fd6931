"""Start runs on other machines, from one file of settings.

    python -m launch create SETTINGS     create a TPU slice, which runs the run by itself
    python -m launch run    SETTINGS     the same, and watch it: create another slice when one is
                                         preempted, delete it at the end, verify the run
    python -m launch status SETTINGS     show the slice, its workers and the run
    python -m launch logs   SETTINGS     print the logs of the workers
    python -m launch delete SETTINGS     delete the slice
    python -m launch gke    SETTINGS     start the run on a Kubernetes cluster
    python -m launch sky    SETTINGS     write a SkyPilot task; recommended for spot slices
    python -m launch slurm  SETTINGS     queue the run with SLURM
    python -m launch local  SETTINGS     run it here, as several processes
    python -m launch plan   SETTINGS     plan time, memory and size; has its own --help

--dry_run prints the exact commands and manifests instead. Exit status 0: done; 1: the limits are
used up, or the run is not whole; 2: refused, with one message; 5: a self-check failed; 74: the
cloud could not be reached; 130 and 143: stopped by ctrl-C or SIGTERM. docs/launch.md explains it
step by step.
"""

if __name__ == "__main__":
    from extraction.interruption import end_on_signals, leave

    end_on_signals()  # before the imports below, which take seconds

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from extraction.command_parser import BAD_INPUT, NO_STORAGE, CommandParser
from extraction.errors import StorageUnavailableError, StoreError
from extraction.interruption import exit_status, raised_in_main
from extraction.setting_names import flags_named
from inference.errors import InputError
from launch.commands import pasted
from launch.gcloud import delete as delete_command
from launch.launch_commands import COMMANDS
from launch.plan import main as plan
from launch.settings import RunSettings, read_settings
from qwen_hooks.errors import ModelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: words of the command line; None: those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["plan"]:
        return plan(given[1:])
    if not given:
        _parser().print_help(sys.stderr)
        return BAD_INPUT
    flags = _parser().parse_args(given)
    started = None
    try:
        with raised_in_main(), flags_named():
            command, settings = COMMANDS[flags.command], read_settings(flags.settings)
            command.check(settings)
            started = settings
            return command.run(settings, flags)
    except KeyboardInterrupt as stopped:
        print(stopped if str(stopped) else "stopped", file=sys.stderr)
        _tell_clean_up(started, flags)
        return exit_status(stopped)
    except StorageUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        _tell_clean_up(started, flags)
        return NO_STORAGE
    except (InputError, ModelError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        _tell_clean_up(started, flags)
        return BAD_INPUT


def _tell_clean_up(settings: RunSettings | None, flags: argparse.Namespace) -> None:
    """Print how to delete a slice, after a command that may have left one."""
    if settings is not None and flags.command in ("create", "run") and not flags.dry_run:
        print(
            f"to delete the slice, if there is one: {pasted(delete_command(settings))}\n"
            f"or: {pasted(['python', '-m', 'launch', 'delete', str(flags.settings)])}",
            file=sys.stderr,
        )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=(command.run.__doc__ or "").split("\n")[0],
            description=command.run.__doc__,
            allow_abbrev=False,
        )
        sub.add_argument("settings", metavar="SETTINGS", type=Path, help="YAML file of the run")
        sub.add_argument(
            "--dry_run", action="store_true", help="print commands and manifests; run nothing"
        )
        command.add_flags(sub)
    return parser


if __name__ == "__main__":
    leave(main())
