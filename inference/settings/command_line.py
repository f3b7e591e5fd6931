"""Command lines from dataclasses of settings; logging; errors as exit statuses.

    0           done
    2           bad input, refused with one message before anything was computed or written
    5           the self-check found a wrong row
    74          the disk stayed full, or the cloud could not be reached
    130, 143    stopped by ctrl-C or SIGTERM

After 74, 130 and 143 the same command with `--resume True` continues the run.
"""

import argparse
import dataclasses
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from extraction.command_parser import BAD_INPUT, NO_STORAGE, SELF_CHECK_FAILED, CommandParser
from extraction.errors import StorageUnavailableError, StoreError
from extraction.interruption import exit_status
from extraction.setting_names import flags_named
from inference.errors import InputError, SelfCheckError
from inference.settings.fields import Settings, type_hints, without_none
from inference.settings.yaml_file import field_values, read_yaml
from qwen_hooks.errors import ModelError

SettingsT = TypeVar("SettingsT", bound=Settings)

TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")

log = logging.getLogger(__name__)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A help formatter that shows each flag once, with an example of its value."""

    def _format_args(self, action: argparse.Action, default_metavar: str | None) -> str:
        return str(action.metavar or default_metavar) if action.nargs != 0 else ""


def run_command(
    run: Callable[[SettingsT], None],
    settings_type: type[SettingsT],
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    ignored: Collection[str] = (),
) -> int:
    """Run a command and return its exit status.

    Args:
        run: function that does the work.
        settings_type: dataclass of the flags.
        description: description of the command, for `--help`.
        arguments: command line; None: that of the process.
        ignored: fields for other commands, which a file of `--config` may hold too.
    """
    parser = make_parser(settings_type, description)
    return ended(lambda: run(parse_settings(parser, settings_type, arguments, ignored)))


def ended(work: Callable[[], None]) -> int:
    """Do a command's work, and return its exit status; errors are printed in one line.

    Args:
        work: parses the command line too.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("httpx", "jax", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with flags_named():
        try:
            work()
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


def make_parser(settings_type: type[Settings], description: str) -> CommandParser:
    """Return a parser with a flag for each field, grouped as the dataclasses group them."""
    parser = CommandParser(
        usage="%(prog)s [flags]",
        description=description,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        metavar="run.yaml",
        help="YAML file with the flags below as fields, or with these fields under `extraction`, as"
        " for python -m launch. A flag on the command line overrides the file.",
    )
    groups: dict[str, Any] = {}
    hints = type_hints(settings_type)
    owners = [kind for kind in reversed(settings_type.__mro__) if issubclass(kind, Settings)]
    for owner in owners:
        for entry in dataclasses.fields(owner):
            if entry.name not in inspect.get_annotations(owner):
                continue
            if owner.group not in groups:
                groups[owner.group] = parser.add_argument_group(owner.group)
            words = _argument(entry, hints)
            if entry.metadata["positional"]:
                several = words.get("nargs") is not None
                more = f" [{words['metavar']} ...]" if several else ""
                parser.usage = f"%(prog)s {words['metavar']}{more} [flags]"
                words |= {"nargs": "*" if several else "?"}
                groups[owner.group].add_argument(entry.name, **words)
            else:
                groups[owner.group].add_argument(f"--{entry.name}", **words)
    return parser


def _argument(entry: dataclasses.Field, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field."""
    kind, _ = without_none(hints[entry.name])
    told: dict[str, Any] = {}
    help_text, default = entry.metadata["help"], entry.default
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
        told["nargs"] = "+"
    if typing.get_origin(kind) is Literal:
        told["choices"] = typing.get_args(kind)
        help_text += f" One of {', '.join(told['choices'])}."
        kind = str
    if kind is bool:
        told |= {"nargs": "?", "const": True}
    if default not in (None, dataclasses.MISSING):
        help_text += f" (default: {default})"
    example = entry.metadata["example"]
    shown_value = default if example is None else example
    if kind is bool and example is None:
        shown_value = not default
    return told | {
        "type": _boolean if kind is bool else kind,
        "help": help_text.replace("%", "%%"),
        "metavar": str(shown_value),
    }


def _boolean(text: str) -> bool:
    if text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def parse_settings(
    parser: CommandParser,
    settings_type: type[SettingsT],
    arguments: Sequence[str] | None,
    ignored: Collection[str] = (),
    apart: Collection[str] = (),
) -> SettingsT:
    """Return the settings of a command line and of the file that it names.

    Args:
        parser: parser of the flags, see `make_parser`.
        settings_type: dataclass of the flags.
        arguments: command line; None: that of the process.
        ignored: fields for other commands, which the file may hold too.
        apart: entries of the file that the caller reads itself.

    Raises:
        InputError: the file or a value cannot be used.
        SystemExit: a flag is unknown or missing, or its value has the wrong type.
    """
    given = vars(parser.parse_args(arguments))
    config = given.pop("config", None)
    if config is not None:
        given = _values_of(Path(config), settings_type, ignored, apart) | given
    for entry in dataclasses.fields(settings_type):
        has_default = entry.default_factory is not dataclasses.MISSING
        if entry.default is dataclasses.MISSING and not has_default and entry.name not in given:
            name = entry.metadata["example"] if entry.metadata["positional"] else f"--{entry.name}"
            parser.error(f"the following arguments are required: {name}")
    return settings_type(**given)


def _values_of(
    path: Path, settings_type: type[Settings], ignored: Collection[str], apart: Collection[str]
) -> dict:
    """Return the fields that a settings file holds."""
    content = read_yaml(path)
    if isinstance(content, dict) and "extraction" in content:
        content = content["extraction"]
    if isinstance(content, dict):
        for_others = sorted(name for name in content if name in ignored)
        if for_others:
            log.info("%s: not for this command: %s", path, ", ".join(for_others))
        content = {name: value for name, value in content.items() if name not in {*ignored, *apart}}
    try:
        return field_values(settings_type, content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
