"""A folder for `datasets.load_from_disk`, in the form that SAELens reads as cached activations.

An example of the dataset is a context: `context_size` rows of the run in a sequence.

    <hook point>   Array2D [context_size, D] float32
    token_ids      Sequence of context_size int32, -1 where a token is not known

Samples are in the order of the run, and the rows of each sample in order of position. The rows at
the end that do not fill a context are left out, and counted.

The Arrow files are written here as `Dataset.save_to_disk` would write them, because the library's
own path through the cache of `Dataset.from_generator` writes everything twice.
"""

import dataclasses
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from extraction.errors import StoreError
from extraction.exports.ordered_rows import TOKEN_IDS, ordered_rows
from extraction.exports.run_rows import RunRows
from extraction.exports.target import check_count, option
from extraction.hook_point_names import transformer_lens_name
from extraction.reading.frameworks import Rows
from extraction.setting_names import setting

FILE_BYTES = 500 << 20
"""Approximate size of an Arrow file, as of `save_to_disk`."""

WRITTEN_BYTES = 32 << 20
"""Approximate bytes written at a time; a table's array may have at most 2**31 numbers."""

NAMES = ("transformer_lens", "canonical")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """The target `huggingface`; the module describes its files.

    Raises:
        StoreError: an option is out of range.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    needs: ClassVar[tuple[str, ...]] = ("datasets",)

    context_size: int = option(
        dataclasses.MISSING, "rows of the run in one example of the dataset, such as 128", type=int
    )
    names: str = option(
        NAMES[0],
        "names of the columns: transformer_lens (blocks.6.hook_resid_post for layer_6; default)"
        " or canonical (the run's own)",
        choices=NAMES,
    )

    def __post_init__(self):
        check_count("context_size", self.context_size)
        if self.names not in NAMES:
            raise StoreError(f"names must be {' or '.join(NAMES)}, not {self.names!r}")

    def write(self, run: RunRows, place: Path) -> list[str]:
        """See `Target.write`."""
        import datasets

        C = self.context_size
        contexts, left_over = divmod(len(run), C)
        if not contexts:
            raise StoreError(
                f"{run.address} has {len(run):,} rows, too few for a context of {C:,};"
                f" {setting('context_size')} must be at most {len(run):,}"
            )
        columns = {hook: self._column(hook) for hook in run.hook_points}
        features = datasets.Features(
            {
                columns[hook]: datasets.Array2D(shape=(C, width), dtype="float32")
                for hook, width in run.widths.items()
            }
            | {TOKEN_IDS: datasets.Sequence(datasets.Value("int32"), length=C)}
        )
        place.mkdir()
        files = _write_files(run, columns, features, C, place)
        datasets.DatasetInfo(features=features).write_to_directory(str(place))
        state = {
            "_data_files": [{"filename": name} for name in files],
            # The library caches results computed from a dataset under this name.
            "_fingerprint": secrets.token_hex(8),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (place / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        return [
            f"{contexts:,} contexts of {C:,} rows; columns {', '.join([*columns.values()])}",
            f"rows at the end that fill no context, left out: {left_over:,}",
        ]

    def _column(self, hook: str) -> str:
        return hook if self.names == "canonical" else transformer_lens_name(hook)


def _write_files(run: RunRows, columns: dict[str, str], features, C: int, place: Path) -> list[str]:
    """Write the Arrow files, each with whole contexts, and return their names."""
    from datasets.arrow_writer import ArrowWriter

    context_bytes = 4 * C * (1 + sum(run.widths.values()))
    contexts, per_file = len(run) // C, max(1, FILE_BYTES // context_bytes)
    count = -(-contexts // per_file)
    names = [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
    pieces = _contexts(run, C, min(per_file, max(1, WRITTEN_BYTES // context_bytes)), per_file)
    piece = next(pieces)
    for name in names:
        with ArrowWriter(features=features, path=str(place / name)) as writer:
            written = 0
            while piece is not None and written < per_file:
                batch: dict[str, Any] = {
                    columns.get(key, key): values for key, values in piece.items()
                }
                writer.write_batch(batch)
                written += len(piece[TOKEN_IDS])
                piece = next(pieces, None)
            writer.finalize()
    return names


def _contexts(run: RunRows, C: int, most: int, per_file: int) -> Iterator[Rows]:
    """Yield `[n, C, width]` of each hook point and `[n, C]` token ids, n at most `most`.

    No piece crosses the end of a file.
    """
    rest: Rows = {}
    given = 0
    for rows in ordered_rows(run):
        if rest:
            rows = {key: np.concatenate([rest[key], values]) for key, values in rows.items()}
        at, contexts = 0, len(rows[TOKEN_IDS]) // C
        while at < contexts:
            take = min(most, contexts - at, per_file - given % per_file)
            yield {
                key: values[at * C : (at + take) * C].reshape(take, C, *values.shape[1:])
                for key, values in rows.items()
            }
            at, given = at + take, given + take
        rest = {key: values[contexts * C :].copy() for key, values in rows.items()}
