"""A folder with `acts.dat` and `ids.dat`, as founding document 003 maps them (sections 2 and 4.2).

    acts.dat      float32 [N, n_hook_points, n_positions, D], the last rows of each sample; with
                  seq_len [N, n_hook_points, seq_len, D], all rows, aligned to the right
    ids.dat       float32 [N, S], tokens aligned to the right, the pad id before them
    export.json   shapes, hook points, keys of the samples, positions of their rows

`ids.dat` has the tokens that the model read: those of the prompt and all generated ones but the
last. If every sample has rows up to its last token, `ids[:, -n_positions:]` are the tokens of
`acts`. With seq_len, `ids` is `[N, seq_len]`, and `acts[n, :, s]` are the rows of token
`ids[n, s]`, as in section 1.2 of that document; where there is no row, as before shorter samples,
`acts` is 0. float32 holds ids below 2**24 exactly; larger ones are refused.
"""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from extraction.errors import StoreError
from extraction.exports.new_place import reserve
from extraction.exports.run_rows import RunRows
from extraction.exports.samples import Samples, refuse_unknown_positions
from extraction.exports.target import check_count, option
from extraction.exports.tokens import Tokens
from extraction.setting_names import setting

EXACT_IDS = 1 << 24
"""float32 holds all whole numbers below it exactly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memmap:
    """The target `memmap`; the module describes its files.

    Raises:
        StoreError: an option is out of range.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    needs: ClassVar[tuple[str, ...]] = ()

    n_positions: int | None = option(
        None,
        "export the last N rows of each sample, such as 1 (default: all rows; then every sample"
        " must have equally many)",
        type=int,
    )
    seq_len: int | None = option(
        None,
        "instead of the last rows, export all rows at their tokens, in arrays of N tokens aligned"
        " to the right, such as 512",
        type=int,
    )
    pad_token_id: int = option(
        0, "token id that fills ids.dat before shorter samples (default: 0)", type=int
    )

    def __post_init__(self):
        for name in ("n_positions", "seq_len"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.n_positions is not None and self.seq_len is not None:
            raise StoreError(
                f"{setting('n_positions')} exports the last rows of each sample, and"
                f" {setting('seq_len')} all rows at their tokens; give one of the two"
            )
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < EXACT_IDS:
            raise StoreError(
                f"pad_token_id must be from 0 to {EXACT_IDS - 1}, not {self.pad_token_id!r}"
            )

    def write(self, run: RunRows, place: Path) -> list[str]:
        """See `Target.write`."""
        _check_widths(run)
        if self.seq_len is not None:
            without = f"{setting('seq_len')} needs; {setting('n_positions', 1)} does not need it"
            refuse_unknown_positions(run.samples, without)
        P = self.seq_len or self._positions(run)
        tokens = Tokens(run, only_read=True)
        if tokens.largest >= EXACT_IDS:
            raise StoreError(
                f"token {tokens.largest} is not exact in float32, as ids.dat stores it;"
                f" {setting('to', 'npz')} keeps ids as int32"
            )
        samples, hooks = run.samples, run.hook_points
        N, S, D = len(samples), self._tokens(tokens, samples), run.widths[hooks[0]]
        start = S - tokens.lengths
        place.mkdir()
        ids = _mapped(place / "ids.dat", (N, S))
        ids[:] = self.pad_token_id
        tokens.write(ids, start)
        acts = _mapped(place / "acts.dat", (N, len(hooks), P, D))
        if self.seq_len is None:
            column = samples.slot - (samples.rows - P)[samples.sample]  # below 0: not exported
        else:
            column = start[samples.sample] + samples.position
        for numbers, values in run.stream():
            taken = column[numbers] >= 0
            sample, at = samples.sample[numbers][taken], column[numbers][taken]
            for number, hook in enumerate(hooks):
                acts[sample, number, at] = values[hook][taken]
        document = {
            "acts": {"file": "acts.dat", "dtype": "float32", "shape": acts.shape},
            "ids": {"file": "ids.dat", "dtype": "float32", "shape": ids.shape},
            "hook_points": hooks,
            "pad_token_id": self.pad_token_id,
            "model_name": run.info.model_name,
            "run_id": run.info.run_id,
            "task_ids": samples.task_ids,
            "sample_idx": samples.sample_idx.tolist(),
            "positions": _positions_of(samples, column >= 0),
        }
        text = json.dumps(document, ensure_ascii=False)
        (place / "export.json").write_text(text + "\n", encoding="utf-8")
        notes = [f"acts.dat {list(acts.shape)}, ids.dat {list(ids.shape)}, both float32"]
        if self.seq_len is not None:
            notes.append(f"{len(run):,} of the {N * S:,} slots have a row; the others are 0")
        elif left_out := len(run) - N * P:
            notes.append(f"rows before the last {P} of their samples, left out: {left_out:,}")
        return [*notes, *tokens.notes]

    def _tokens(self, tokens: Tokens, samples: Samples) -> int:
        """Return the number of tokens of each sample in `ids.dat`, with padding."""
        longest = int(tokens.lengths.max())
        if self.seq_len is None:
            return longest
        if longest > self.seq_len:
            raise StoreError(
                f"these samples have more than {self.seq_len} tokens:"
                f" {samples.named(tokens.lengths > self.seq_len)}; {setting('seq_len', longest)}"
                " is the least that holds all of them"
            )
        return self.seq_len

    def _positions(self, run: RunRows) -> int:
        """Return the number of rows that are exported of each sample."""
        samples = run.samples
        fewest, most = int(samples.rows.min()), int(samples.rows.max())
        if self.n_positions is None:
            if fewest < most:
                raise StoreError(
                    f"samples have from {fewest} to {most} rows, but acts.dat needs equally many;"
                    f" {setting('n_positions', fewest)} exports the last {fewest} of each sample"
                )
            return most
        if fewest < self.n_positions:
            short = samples.named(samples.rows < self.n_positions)
            raise StoreError(
                f"these samples have fewer than {self.n_positions} rows: {short};"
                f" {setting('n_positions', fewest)} is the most that every sample has"
            )
        return self.n_positions


def _positions_of(samples: Samples, exported: np.ndarray) -> list[list[int]]:
    """Return the positions of each sample's exported rows, ascending."""
    order = np.lexsort((samples.slot, samples.sample))
    order = order[exported[order]]
    ends = np.cumsum(np.bincount(samples.sample[order], minlength=len(samples)))
    return [part.tolist() for part in np.split(samples.position[order], ends[:-1])]


def _check_widths(run: RunRows) -> None:
    if len(set(run.widths.values())) > 1:
        widths = ", ".join(f"{hook} {width}" for hook, width in run.widths.items())
        raise StoreError(
            f"acts.dat holds rows of one width, but the widths are {widths}; choose"
            f" {setting('hook_points')} of one width, and export the others to another folder"
        )


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap:
    array = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
    reserve(path)
    return array
