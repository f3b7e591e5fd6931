"""The comparison of a run with its plan (`--plan`), at the end of the run.

The plan is a file that `python -m launch plan --json` wrote.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from extraction.run.totals import RunTotals
from extraction.setting_names import setting
from inference.errors import InputError
from inference.inputs.files import read_input_files

COMPARED = (
    "rows", "sequences", "activation_files", "activation_bytes", "exact",
    "committed_units", "seconds", "memory", "compiled_memory",
)  # fmt: skip
"""Fields of a plan that are compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actual:
    """The measured values of a run that a plan predicts.

    Attributes:
        rows: number of rows of each hook point.
        sequences: number of samples that have rows.
        files: number of files of activations, with second files.
        bytes: bytes of those files.
        seconds: seconds of this process; None if it did not run all that was planned.
        peak_memory: peak bytes of the fullest device of this process; None if it does not say.
    """

    rows: int
    sequences: int
    files: int
    bytes: int
    seconds: float | None
    peak_memory: int | None


def read_plan(address: str) -> dict[str, Any]:
    """Read a plan.

    Args:
        address: path or `gs://...` of a JSON file.

    Raises:
        InputError: there is no such file, or it is not a plan.
        StoreError: the bucket cannot be used.
    """
    files = list(read_input_files("plan", address, ".json"))
    try:
        plan = json.loads(files[0].data) if len(files) == 1 else None
    except ValueError:
        plan = None
    if not isinstance(plan, dict) or not plan.keys() >= set(COMPARED):
        raise InputError(
            f"{setting('plan', address)} must be a file that `python -m launch plan --json FILE`"
            " wrote"
        )
    return plan


def actual_of(
    plan: Mapping[str, Any],
    totals: RunTotals,
    committed: int,
    seconds: float,
    peak_memory: int | None,
) -> Actual:
    """Return the actual values of a finished run.

    Args:
        plan: plan of the run.
        totals: totals of all its units.
        committed: number of units that were committed when this process began.
        seconds: seconds that this process took.
        peak_memory: peak bytes of its fullest device; None if it does not say.
    """
    return dataclasses.replace(
        stored(totals),
        seconds=seconds if committed == plan["committed_units"] else None,
        peak_memory=peak_memory,
    )


def compare(plan: Mapping[str, Any], actual: Actual) -> list[str]:
    """Return a line for each value that both the plan and the run have."""
    most = "" if plan["exact"] else "at most "
    memory, seconds = plan["memory"], plan["seconds"]
    pairs = [
        ("rows", most, plan["rows"], actual.rows),
        ("sequences", most, plan["sequences"], actual.sequences),
        ("files", most, plan["activation_files"], actual.files),
        ("bytes", most, plan["activation_bytes"], actual.bytes),
        (
            "peak memory",
            "",
            plan["compiled_memory"] or (memory and memory["params"] + memory["batch"]),
            actual.peak_memory,
        ),
        (
            "seconds",
            "",
            seconds and round(seconds["total"], 1),
            None if actual.seconds is None else round(actual.seconds, 1),
        ),
    ]
    return [
        f"{name:12} {most}{wanted} planned, {found} found{_share(wanted, found)}"
        for name, most, wanted, found in pairs
        if wanted is not None and found is not None
    ]


def stored(totals: RunTotals) -> Actual:
    """Return the actual values that the commit records contain; the others are None."""
    return Actual(
        rows=totals.n_rows,
        sequences=totals.n_sequences,
        files=totals.n_activation_files,
        bytes=totals.n_activation_bytes,
        seconds=None,
        peak_memory=None,
    )


def _share(wanted: float | int, found: float | int) -> str:
    return "" if found == wanted or not wanted else f" ({found / wanted:.2f} of the plan)"
