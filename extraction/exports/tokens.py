"""The tokens of each sample, as `[N, S]`.

They are read from the run's output lines; without a line, only the tokens of rows are known.
"""

from collections.abc import Iterator

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.exports.run_rows import RunRows


class Tokens:
    """The tokens of the samples that have rows.

    Args:
        run: rows of the run.
        only_read: leave out the last generated token of each sample, which the model never reads.

    Attributes:
        lengths: `[N]` int64, tokens of each sample; without an output line, up to its last row.
        largest: largest token id.
        notes: notes for the user.

    Raises:
        CorruptBatchError: a file of output lines is damaged.
    """

    def __init__(self, run: RunRows, *, only_read: bool = False):
        self._run, self._only_read = run, only_read
        samples = run.samples
        self._known = (samples.position >= 0) & (samples.token_id >= 0)
        self.lengths = np.zeros(len(samples), np.int64)
        np.maximum.at(self.lengths, samples.sample, samples.position.astype(np.int64) + 1)
        self.largest = int(samples.token_id.max())
        told = np.zeros(len(samples), bool)
        for sample, tokens in self._sequences():
            told[sample] = True
            self.lengths[sample] = max(self.lengths[sample], len(tokens))
            self.largest = max(self.largest, int(tokens.max(initial=0)))
        missing = int(np.count_nonzero(~told))
        self.notes = (
            [f"samples without an output line, with only the tokens of rows: {missing:,}"]
            if missing
            else []
        )

    def write(self, array: np.ndarray, start: np.ndarray) -> None:
        """Write the tokens of all samples into an array.

        Args:
            array: `[N, S]` of any dtype that holds them.
            start: `[N]`, the column of each sample's first token.
        """
        samples, known = self._run.samples, self._known
        rows = samples.sample[known]
        array[rows, start[rows] + samples.position[known]] = samples.token_id[known]
        for sample, tokens in self._sequences():
            array[sample, start[sample] : start[sample] + len(tokens)] = tokens

    def _sequences(self) -> Iterator[tuple[int, np.ndarray]]:
        for sample, prompt, generated in self._run.sequences():
            if sample is None or prompt is None:
                continue
            tokens = prompt + (generated[:-1] if self._only_read else generated)
            try:
                yield sample, np.array(tokens, np.int32)
            except (ValueError, TypeError, OverflowError) as error:
                raise CorruptBatchError(
                    f"{self._run.address}: an output line has token ids that are not int32: {error}"
                ) from None
