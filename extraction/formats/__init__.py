"""File formats of activation batches. A format is one file here and one line in `FORMATS`.

| name | file | activations | for |
|---|---|---|---|
| pickle | `.pkl` | float32 | founding document 004's loading code |
| safetensors | `.safetensors` | float32, bfloat16 | speed; every framework reads it |
| npz | `.npz` | float32 | `numpy.load` |
| raw | `.bin`, `.keys.npz` | float32, bfloat16 | memory-mapping |

Read in this order: `batch` (what a format offers), `float_types`, `key_arrays`, the formats;
`pickle_table` lays out our own pickles and reads them; `safe_pickle` with `pickle_machine` and
`pickle_objects` reads all others. All of it needs numpy and nothing else.
"""

from extraction.formats.batch import Format, ParsedBatch, SerialisedBatch
from extraction.formats.npz_format import NpzFormat
from extraction.formats.pickle_format import PickleFormat
from extraction.formats.raw_format import RawFormat
from extraction.formats.safetensors_format import SafetensorsFormat

__all__ = ["FORMATS", "Format", "ParsedBatch", "SerialisedBatch"]

FORMATS: dict[str, Format] = {
    "pickle": PickleFormat(),
    "safetensors": SafetensorsFormat(),
    "npz": NpzFormat(),
    "raw": RawFormat(),
}
