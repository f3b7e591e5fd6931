"""Retries of writes while the disk is full, and once when it fails."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from extraction.errors import StorageUnavailableError
from extraction.setting_names import setting

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STALL_TIMEOUT = 600.0
"""Seconds to wait while the disk is full."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0

T = TypeVar("T")


def patiently(address: str, write: Callable[[], T], stall_timeout: float = STALL_TIMEOUT) -> T:
    """Write, retrying while the disk is full, and once if it fails otherwise.

    A failed write is repeated from its beginning, under another temporary name: after a failed
    fsync the same file must not be trusted.

    Args:
        address: address of the storage, for messages.
        write: the write, which can be repeated.
        stall_timeout: seconds to wait while the disk is full, without those that `write` takes.

    Raises:
        StorageUnavailableError: the disk stayed full, or failed twice.
        FileExistsError: `write` raised it; repeating would not help.
    """
    wait, left, failed = FIRST_WAIT, stall_timeout, False
    while True:
        try:
            return write()
        except FileExistsError:
            raise
        except OSError as error:
            full = error.errno in FULL
            if (full and wait > left) or (not full and failed):
                raise StorageUnavailableError(
                    f"{address}: {error.strerror or error}; all committed units are safe; run again"
                    f" with {setting('resume', True)} to go on from them"
                ) from None
            failed |= not full
            log.warning("%s: %s; trying again", address, error)
            if full:
                time.sleep(wait)
                left -= wait
                wait = min(2 * wait, LONGEST_WAIT)
