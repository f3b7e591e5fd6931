"""What the store refuses or cannot do."""


def first_line(error: BaseException) -> str:
    """Of an error's message, for a message of our own; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class StoreError(ValueError):
    """Rows that do not fit, or a folder that cannot be written to; says what would be right."""


class ExistingRunError(StoreError):
    """The folder already holds a run, which nothing may overwrite."""


class CorruptBatchError(StoreError):
    """A batch's file is damaged, or no writer of batches made it. Nothing in it was run."""


class UnsafePickleError(CorruptBatchError):
    """A pickle asks for something that no batch needs, such as calling a function."""


class UnsafeNameError(StoreError):
    """A file or hook point has a name that leads elsewhere, or that no file system takes."""


class UnsafeFileError(StoreError):
    """A file of a run is a link, or none that can be read; nothing was followed or waited for."""


class ConflictError(StoreError):
    """Another file has the name already, with other content; it was left as it is."""


class StorageUnavailableError(StoreError):
    """The disk is full or the cloud cannot be reached; what is committed is safe, try again."""
