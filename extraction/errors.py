"""Exceptions of the store."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class StoreError(ValueError):
    """Rows, a folder or a setting that cannot be used; the message says what would be right."""


class ExistingRunError(StoreError):
    """The folder already holds a run, which must not be overwritten."""


class CorruptBatchError(StoreError):
    """A batch's file is damaged, or no writer of batches made it. Nothing in it was executed."""


class UnsafePickleError(CorruptBatchError):
    """A pickle contains something that no batch needs, such as calling a function."""


class UnsafeNameError(StoreError):
    """A file's or hook point's name leads out of the run, or not every file system allows it."""


class UnsafeFileError(StoreError):
    """A file of a run is a link or not a regular file; it was neither followed nor read."""


class ConflictError(StoreError):
    """Another file already has the name, with other content; it was left as it is."""


class StorageUnavailableError(StoreError):
    """The disk is full or the cloud cannot be reached; committed units are safe, try again."""
