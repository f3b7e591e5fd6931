"""File formats of activation batches. A format is one file here and one line in `FORMATS`."""

from typing import Protocol

from extraction.formats.pickle_format import PickleFormat
from extraction.rows import RowBlock


class Format(Protocol):
    """How the rows of one hook point become the bytes of one file."""

    extension: str

    def serialise(self, hook_point: str, block: RowBlock) -> bytes:
        """The file's content for one hook point of a block."""
        ...


FORMATS: dict[str, Format] = {"pickle": PickleFormat()}
