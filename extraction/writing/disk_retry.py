"""Writes that outlast a full disk, and a disk that fails once."""

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
"""Seconds that a full disk is waited for."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0

T = TypeVar("T")


def patiently(address: str, write: Callable[[], T], stall_timeout: float = STALL_TIMEOUT) -> T:
    """Waits while the disk is full, and tries once more where it fails.

    A write that failed is done again from its beginning, under another temporary name: after
    a failed fsync the same file must not be trusted.

    Args:
        address: of the storage, for messages.
        write: what is to be done; it can be done again.
        stall_timeout: seconds that a full disk is waited for, besides those that `write` takes.

    Raises:
        StorageUnavailableError: the disk stayed full, or failed twice.
        FileExistsError: by `write`; to try again would not help.
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
                    f"{address}: {error.strerror or error}; what is committed is whole, and a run"
                    f" with {setting('resume', True)} goes on from there"
                ) from None
            failed |= not full
            log.warning("%s: %s; trying again", address, error)
            if full:
                time.sleep(wait)
                left -= wait
                wait = min(2 * wait, LONGEST_WAIT)
