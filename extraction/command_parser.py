"""What every command of this project says and returns when it is told something wrong."""

import argparse
from typing import NoReturn

BAD_INPUT = 2
"""Exit status: refused before anything was done."""

SELF_CHECK_FAILED = 5
"""Exit status: rows disagree with the same rows computed alone; they are kept and marked."""

NO_STORAGE = 74
"""Exit status, `EX_IOERR` in sysexits.h: the disk is full or the cloud cannot be reached."""

FINAL = (BAD_INPUT, SELF_CHECK_FAILED)
"""Statuses after which the same command would end so again."""


class CommandParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the flags."""

    def error(self, message: str) -> NoReturn:
        """Ends the command; argparse itself would print the usage first and bury the message."""
        self.exit(BAD_INPUT, f"error: {message} (--help lists the flags)\n")
