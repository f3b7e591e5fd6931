"""The rows of a run in the order of its samples, for forms that are written from front to back.

In memory are at most the rows between the first and last row of a sample; in runs of the commands
these are the rows of one batch.
"""

from collections.abc import Iterator

import numpy as np

from extraction.exports.run_rows import RunRows
from extraction.reading.frameworks import Rows

TOKEN_IDS = "token_ids"


def ordered_rows(run: RunRows) -> Iterator[Rows]:
    """Yield all rows, some at a time: sample by sample, and each sample's in order of position.

    Yields:
        `[rows, width]` of each hook point, as `RunRows.stream` has them, and `TOKEN_IDS`, int32
        `[rows]`, -1 where a token is not known.
    """
    places = run.samples.places()
    # True where the rows up to this one are a prefix of the sorted rows.
    whole = np.maximum.accumulate(places) == np.arange(len(places))
    held: list[Rows] = []
    first = 0  # number of the first row held
    for numbers, values in run.stream():
        rows = values | {TOKEN_IDS: run.samples.token_id[numbers]}
        ends = np.flatnonzero(whole[numbers])
        count = int(ends[-1]) + 1 if len(ends) else 0
        if count:
            held.append({key: array[:count] for key, array in rows.items()})
            end = numbers.start + count
            order = np.argsort(places[first:end])
            yield {key: np.concatenate([part[key] for part in held])[order] for key in rows}
            held, first = [], end
        if count < numbers.stop - numbers.start:
            held.append({key: array[count:].copy() for key, array in rows.items()})
