"""A plan beside what came of it: `--plan`, at the end of a run.

The plan is what `python -m launch plan --json` wrote.
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
"""What of a plan is looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actual:
    """What came of a plan.

    Attributes:
        rows: of each hook point.
        sequences: samples that have rows.
        files: of activations, with their sidecars.
        bytes: of those files.
        seconds: that this process took for what the plan foresaw; None: it did something else.
        peak_memory: bytes, of the fullest device of this process; None: it does not tell.
    """

    rows: int
    sequences: int
    files: int
    bytes: int
    seconds: float | None
    peak_memory: int | None


def read_plan(address: str) -> dict[str, Any]:
    """Reads a plan.

    Args:
        address: path or `gs://...` of a JSON file.

    Raises:
        InputError: there is none, or it is something else.
        StoreError: the bucket cannot be used.
    """
    files = list(read_input_files("plan", address, ".json"))
    try:
        plan = json.loads(files[0].data) if len(files) == 1 else None
    except ValueError:
        plan = None
    if not isinstance(plan, dict) or not plan.keys() >= set(COMPARED):
        raise InputError(
            f"{setting('plan', address)} is no plan that python -m launch plan --json has written"
        )
    return plan


def actual_of(
    plan: Mapping[str, Any],
    totals: RunTotals,
    committed: int,
    seconds: float,
    peak_memory: int | None,
) -> Actual:
    """Return what a finished run gave.

    Args:
        plan: of the run.
        totals: of all its units.
        committed: units that were there when this process began.
        seconds: that this process took.
        peak_memory: bytes, of its fullest device; None where that is not told.
    """
    return dataclasses.replace(
        stored(totals),
        seconds=seconds if committed == plan["committed_units"] else None,
        peak_memory=peak_memory,
    )


def compare(plan: Mapping[str, Any], actual: Actual) -> list[str]:
    """Planned against actual, a line for each thing that both know."""
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
    """What the commit records tell; the rest is not known."""
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
