"""What is wrong with a run, or may be, in the order of its weight."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from extraction.hook_point_names import few
from extraction.maintenance.checks.report import missing_numbers
from extraction.report.contents import HookPointContents, RunContents
from extraction.report.markup import Html, count, element, foreign, joined, number

LISTED = 6
"""Hook points with a message of their own."""


class Message(NamedTuple):
    """A message: its kind (`warning`, `note` or `good`), a title, and a text."""

    kind: str
    title: str
    text: Sequence[Html]


def messages_of(run: RunContents) -> list[Message]:
    """Return the messages at the head of the page, warnings before notes."""
    found = [
        *_self_checks(run),
        *_state(run),
        *_nonfinite(run),
        *_skipped(run),
        *(_message("warning", "A file is damaged.", problem) for problem in run.problems),
        *_large(run),
        *_lacking(run),
    ]
    found.sort(key=lambda message: message.kind != "warning")
    if not any(message.kind == "warning" for message in found):
        found.insert(0, _message("good", "No warnings.", _checked(run)))
    return found


def _message(kind: str, title: str, text: str | Html, *more: Html) -> Message:
    first = text if isinstance(text, Html) else foreign(text, 1000)
    return Message(kind, title, (first, *more))


def self_check_text(check: Mapping[str, Any]) -> str:
    """Return how many rows a self-check computed again, and how far off they were."""
    rows = check.get("rows", check.get("samples", 0))
    error = check.get("largest_error")
    unit = "rows" if "rows" in check else "samples"
    shown = "infinite or not a number"
    if error is not None and abs(error) < 1e300:
        shown = f"{float(error):.2g}"
    return f"{count(rows)} {unit} computed again, largest relative error {shown}"


def _checked(run: RunContents) -> str:
    text = "The run is complete, all rows are finite"
    if run.self_checks:
        text += ", and its self-check agrees"
    return f"{text}, and no norm is above 10 times the median."


def _self_checks(run: RunContents) -> Iterator[Message]:
    for check in run.self_checks:
        if check.get("failed"):
            text = f"{check['failed']} ({self_check_text(check)})"
            yield _message("warning", "The self-check failed: rows are wrong.", text)
    if not any(check.get("rows", check.get("samples", 0)) for check in run.self_checks):
        yield _message(
            "note",
            "No self-check.",
            "The run does not record that some of its rows were computed again and compared.",
        )


def _state(run: RunContents) -> Iterator[Message]:
    done = len(run.totals)
    if run.planned is None:
        text = f"{count(done)} batches so far; it goes on, or was cut off."
        yield _message("warning", "The run is not closed.", text)
    elif not run.is_complete:
        _, which = missing_numbers(run.planned, [b.batch_id for b in run.totals.batches()])
        text = f"{count(done)} of {count(run.planned)} batches are committed; missing: {which}."
        yield _message("warning", "The run is incomplete.", text)
    if not run.totals.n_rows:
        yield _message("warning", "There are no rows.", "No batch has any.")


def _nonfinite(run: RunContents) -> Iterator[Message]:
    bad = [hook for hook in run.hook_points if hook.statistics.nonfinite_rows]
    for hook in bad[:LISTED]:
        rows = hook.statistics
        text = (
            f"{count(rows.nonfinite_rows)} of {count(rows.rows)} rows of {hook.name} hold infinity"
            " or NaN. They are stored; statistics leave them out."
        )
        yield _message("warning", "Rows are not finite.", text)
    if len(bad) > LISTED:
        text = f"Rows of {count(len(bad) - LISTED)} more hook points are not finite."
        yield _message("warning", "Rows are not finite.", text)


def _skipped(run: RunContents) -> Iterator[Message]:
    if run.outputs is None or not run.outputs.reasons:
        return
    skipped = run.outputs.finish_reasons["skipped"]
    reasons = "; ".join(f"{reason} ({n:,})" for reason, n in run.outputs.reasons.most_common(3))
    title = f"{count(skipped)} of {count(run.outputs.samples)} samples were skipped."
    yield _message("warning", title, reasons)


def _large(run: RunContents) -> Iterator[Message]:
    large = [hook for hook in run.hook_points if hook.large.rows + hook.large.unsettled]
    if not large:
        return
    large.sort(key=lambda hook: -hook.largest_multiple)
    parts = [element("li", _large_rows(hook)) for hook in large[:LISTED]]
    if len(large) > LISTED:
        parts.append(element("li", f"and rows of {count(len(large) - LISTED)} more hook points"))
    multiple = f"{large[0].large.multiple:g}"
    yield _message(
        "warning",
        f"Rows have norms above {multiple} times the median.",
        joined(element("code", f"max_norm_multiple={multiple}"), " leaves them out when rows are"),
        joined(" read. ", element("a", "Details", href="#large"), element("ul", *parts)),
    )


def _large_rows(hook: HookPointContents) -> Html:
    found = hook.large
    least = "at least " if found.unsettled else ""
    text = f": {least}{count(found.rows)} of {count(hook.finite)} rows"
    if found.at_position_0:
        text += f", {count(found.at_position_0)} at position 0"
    if hook.largest_multiple:
        text += f", up to {number(hook.largest_multiple)} × median"
    return joined(foreign(hook.name), text)


def _lacking(run: RunContents) -> Iterator[Message]:
    lacking = [
        hook.name
        for hook in run.hook_points
        if hook.statistics.rows and hook.statistics.largest is None
    ]
    if lacking:
        yield _message(
            "note",
            "The run lacks some statistics.",
            f"The version that wrote it recorded no mean norms and no keys of large rows of"
            f" {few(lacking)}. The commands convert and merge add them to the run that they write.",
        )
