"""File formats of activation batches. A format is one file here and one line in `FORMATS`.

| name | file | activations | for |
|---|---|---|---|
| pickle | `.pkl` | float32 | founding document 004's loading code |
| safetensors | `.safetensors` | float32, bfloat16 | speed; every framework reads it |
| npz | `.npz` | float32 | read only: runs of version 0.1.0 |
| raw | `.bin`, `.keys.npz` | float32, bfloat16 | read only: runs of version 0.1.0 |

Read in this order: `batch` (what a format offers), `float_types`, `key_arrays`, the formats;
`pickle_table` lays out our own pickles and reads them; `safe_pickle` with `pickle_machine` and
`pickle_objects` reads all others. All of it needs numpy and nothing else.
"""

from extraction.errors import StoreError
from extraction.formats.batch import Format, ParsedBatch, SerialisedBatch
from extraction.formats.npz_format import NpzFormat
from extraction.formats.pickle_format import PickleFormat
from extraction.formats.raw_format import RawFormat
from extraction.formats.safetensors_format import SafetensorsFormat

__all__ = ["FORMATS", "Format", "ParsedBatch", "SerialisedBatch", "written_format"]

FORMATS: dict[str, Format] = {
    "pickle": PickleFormat(),
    "safetensors": SafetensorsFormat(),
    "npz": NpzFormat(),
    "raw": RawFormat(),
}


def written_format(name: str) -> Format:
    """Return a format that new runs may be written in.

    Raises:
        StoreError: there is no such format, or it is only read.
    """
    written = [known for known, file_format in FORMATS.items() if file_format.writable]
    if name in written:
        return FORMATS[name]
    if name not in FORMATS:
        raise StoreError(f"there is no format {name!r}; choose {' or '.join(written)}")
    raise StoreError(
        f"{name} files are read, but no longer written; write {' or '.join(written)}."
        " `python -m extraction export RUN OUT --to npz` or `--to memmap` writes files for numpy;"
        " `python -m extraction convert` rewrites a run of an earlier version"
    )
