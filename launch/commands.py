"""Running commands of other programs, as lists of arguments, never through a shell.

Each command has a time limit. Transient failures are retried; permanent ones, such as a missing
permission, fail at once with the program's own message.
"""

import dataclasses
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence

from extraction.errors import StorageUnavailableError
from inference.errors import InputError

Command = list[str]

TRIES = 6
PAUSE = 2.0
"""Seconds before the second try; each further pause is twice as long."""

TIME_LIMIT = 600.0
"""Most seconds of one try."""

GRACE = 5.0
"""Seconds that a program has to end after it is stopped, before it is killed."""

PERMANENT = re.compile(
    r"PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|FAILED_PRECONDITION|\b40[013]\b"
    r"|active account|not have permission|reauthentication|AccessDenied|unrecognized arguments"
    r"|invalid_grant|bucket does not exist|Unable to read file"
)
"""Parts of gcloud's messages for errors that a retry cannot solve."""

MISSING = re.compile(r"NOT_FOUND|matched no objects|was not found|\b404\b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a command.

    Attributes:
        status: exit status; 0: success.
        out: standard output.
        error: standard error.
    """

    status: int
    out: str
    error: str

    @property
    def is_missing(self) -> bool:
        """Whether it failed because the thing it was about does not exist."""
        return self.status != 0 and bool(MISSING.search(self.error))

    @property
    def is_permanent(self) -> bool:
        """Whether the same command would fail again."""
        return self.status == 2 or bool(PERMANENT.search(self.error))


def pasted(command: Sequence[str]) -> str:
    """Return a command as a line that a shell reads as the same arguments."""
    return shlex.join(command)


def once(command: Sequence[str]) -> Answer:
    """Run a command once.

    Raises:
        InputError: there is no such program.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise InputError(f"{command[0]} is not installed, or not on PATH; install it") from None
    with process:
        try:
            out, error = process.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            _end(process)
            return Answer(status=124, out="", error=f"gave no answer within {TIME_LIMIT:.0f} s")
        except BaseException:  # including ctrl-C
            _end(process)
            raise
    return Answer(status=process.returncode, out=out, error=error)


def _end(process: subprocess.Popen[str]) -> None:
    """Terminate a program, and kill it if it does not end."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(
    command: Sequence[str], say: Callable[[str], None], *, missing_is_fine: bool = False
) -> Answer:
    """Run a command, and retry it until it works.

    Args:
        command: a command that may be repeated.
        say: called with a line about each failure.
        missing_is_fine: return the answer, and do not raise, if the thing does not exist.

    Raises:
        InputError: the command failed permanently.
        StorageUnavailableError: the command failed in every try.
    """
    answer = once(command)
    for number in range(1, TRIES):
        if answer.status == 0 or (missing_is_fine and answer.is_missing):
            return answer
        if answer.is_permanent or answer.is_missing:
            raise InputError(f"{_short(command)}: {answer.error.strip() or answer.status}")
        say(f"{_short(command)}: {_last_line(answer)}; trying again ({number} of {TRIES - 1})")
        time.sleep(PAUSE * 2 ** (number - 1))
        answer = once(command)
    if answer.status == 0 or (missing_is_fine and answer.is_missing):
        return answer
    raise StorageUnavailableError(
        f"{_short(command)} failed {TRIES} times: {answer.error.strip() or answer.status}"
    )


def _short(command: Sequence[str]) -> str:
    """Return the words of a command up to its first flag or address."""
    words: list[str] = []
    for word in command[:6]:
        if word.startswith("-") or ":" in word:
            break
        words.append(word)
    return " ".join(words)


def _last_line(answer: Answer) -> str:
    lines = answer.error.strip().splitlines() or [f"exit status {answer.status}"]
    return lines[-1]
