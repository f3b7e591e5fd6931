"""What a run's metadata say of interventions, in words."""

from collections.abc import Mapping
from typing import Any

MOST_SHOWN = 8
LONGEST = 60
"""Letters of a name; a hostile run may have long ones."""


def changes(run: Mapping[str, Any]) -> list[str]:
    """Return a line for each intervention of a run, at most `MOST_SHOWN`; none if it has none.

    Args:
        run: the metadata's `run`; anything may stand in it.
    """
    entries = run.get("interventions")
    if not isinstance(entries, list):
        return []
    lines = [_line(entry) for entry in entries[:MOST_SHOWN] if isinstance(entry, Mapping)]
    if len(entries) > MOST_SHOWN:
        lines.append(f"and {len(entries) - MOST_SHOWN:,} more")
    return lines


def _line(entry: Mapping[str, Any]) -> str:
    def told(name: str) -> str:
        return str(entry.get(name))[:LONGEST]

    what = told("name") if entry.get("name") is not None else told("vectors")
    how = ""
    if entry.get("operation") == "clamp":
        how = f", from {told('low')} to {told('high')}"
    elif entry.get("strength") is not None:
        unit = told("unit").replace("_", " ")
        how = f", strength {told('strength')} ({unit})"
    where = "" if entry.get("positions") is None else f", positions {told('positions')}"
    when = "" if entry.get("when") is None else f", {told('when')} tokens"
    return f"{told('operation')} {what} at {told('hook_point')}{how}{when}{where}"
