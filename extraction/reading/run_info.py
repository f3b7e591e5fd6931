"""What a run is, as `ActivationDataset.info` tells it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from extraction.hook_point_names import few


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RunInfo:
    """What a run is, and how far it has come.

    Attributes:
        model_name: as it was given to the run.
        hook_points: all that were captured.
        width: of the rows of each hook point that is read.
        dtype: that activations are stored in; None: the folder does not tell.
        format: of the files.
        rows: of each hook point, that can be read.
        sequences: samples that have rows; None: the folder does not tell.
        complete: whether no row will follow; None: the folder does not tell.
        run_id: of the run; None: the folder does not tell.
        statistics: of each hook point: rows, nonfinite_rows, mean, mean_square, median_norm,
            norm_histogram; empty if the folder does not tell.
    """

    model_name: str
    hook_points: tuple[str, ...]
    width: Mapping[str, int]
    dtype: str | None
    format: str
    rows: int
    sequences: int | None
    complete: bool | None
    run_id: str | None
    statistics: Mapping[str, Mapping[str, Any]]

    def __repr__(self) -> str:
        hooks = [f"{hook} [{width}]" for hook, width in self.width.items()]
        how = {True: "complete", False: "not complete", None: "unknown whether complete"}
        return (
            f"RunInfo({self.model_name!r}, run {self.run_id}: {self.rows:,} rows of"
            f" {self.sequences} samples, {how[self.complete]}; {few(hooks)} of"
            f" {len(self.hook_points)} captured, {self.format}, {self.dtype})"
        )
