"""The information about a run that `ActivationDataset.info` returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from extraction.hook_point_names import few
from extraction.reading.run_contents import RunContents


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RunInfo:
    """Properties of a run, and how much of it exists.

    Attributes:
        model_name: name of the model, as it was given to the run.
        hook_points: all captured hook points.
        width: width of the rows of each hook point that is read.
        dtype: dtype of the stored activations; None if the folder does not say.
        format: format of the files, such as `pickle`.
        rows: number of rows of each hook point.
        sequences: number of samples that have rows; None if the folder does not say.
        complete: whether all rows exist; None if the folder does not say.
        run_id: id of the run; None if the folder does not say.
        statistics: for each hook point rows, nonfinite_rows, mean, mean_square, median_norm and
            norm_histogram; empty if the folder does not say.
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

    @classmethod
    def of(cls, run: RunContents, width: Mapping[str, int], rows: int) -> "RunInfo":
        """Return the information about a run, as of its last `new_batches`.

        Args:
            run: the run.
            width: width of the rows of each hook point that is read.
            rows: number of rows of each hook point.

        Raises:
            StoreError: the run's `metadata.json` is damaged.
        """
        description, progress = run.description, run.progress()
        return cls(
            model_name=description.model_name,
            hook_points=description.hook_points,
            width=width,
            dtype=description.dtype,
            format=description.file_format,
            rows=rows,
            sequences=progress.sequences,
            complete=progress.complete,
            run_id=description.run_id,
            statistics=progress.statistics,
        )

    def __repr__(self) -> str:
        hooks = [f"{hook} [{width}]" for hook, width in self.width.items()]
        how = {True: "complete", False: "not complete", None: "unknown whether complete"}
        return (
            f"RunInfo({self.model_name!r:.120}, run {self.run_id}: {self.rows:,} rows of"
            f" {self.sequences} samples, {how[self.complete]}; {few(hooks)} of"
            f" {len(self.hook_points)} captured, {self.format}, {self.dtype})"
        )

    def _repr_html_(self) -> str:
        from extraction.notebook_html import summary

        state = {True: "complete", False: "not complete", None: "unknown whether complete"}
        facts = {
            "run": str(self.run_id),
            "state": state[self.complete],
            "rows": f"{self.rows:,} of {self.sequences} samples",
            "stored": f"{self.format}, {self.dtype}",
        }
        for hook, width in self.width.items():
            entry = self.statistics.get(hook, {})
            median, mean = entry.get("median_norm"), entry.get("mean_norm")
            norms = f", median norm {median:.4g}" * (median is not None)
            norms += f", mean norm {mean:.4g}" * (mean is not None)
            facts[hook] = f"width {width}{norms}"
        return summary(f"Run of {self.model_name}", facts)
