"""Exit statuses of all commands, and the argument parser that they share."""

import argparse
from typing import NoReturn

BAD_INPUT = 2
"""Exit status: refused before anything was done."""

SELF_CHECK_FAILED = 5
"""Exit status: rows disagree with the same rows computed alone; they are kept and marked."""

NO_STORAGE = 74
"""Exit status, `EX_IOERR` in sysexits.h: the disk is full or the cloud cannot be reached."""

FINAL = (BAD_INPUT, SELF_CHECK_FAILED)
"""Exit statuses that the same command would end with again."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End the command with one line; argparse would print the usage before the message."""
        self.exit(BAD_INPUT, f"error: {message} (--help lists the flags)\n")
