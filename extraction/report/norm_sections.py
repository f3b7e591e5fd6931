"""The sections about norms: how they are distributed, over the blocks, and rows of large norm."""

from collections.abc import Sequence

from extraction.hook_point_names import few
from extraction.report.contents import HookPointContents, RunContents
from extraction.report.drawing import key
from extraction.report.markup import Html, count, element, foreign, joined, number, token
from extraction.report.plots import (
    SERIES,
    bars_of,
    histogram,
    over_layers,
    series_of,
    shared_range,
)
from extraction.report.tables import details, table
from extraction.run.large_norms import LargeNorms
from extraction.run.vocabulary import Vocabulary, text_of

PLOTTED = 24
"""Most hook points with a histogram and with a table of their largest rows."""

LARGEST_SHOWN = 12
"""Rows of largest norm of a hook point that are listed."""


def norms_section(run: RunContents) -> list[Html]:
    """Return the section with histograms of norms, and norms over the blocks."""
    shown = _spread([hook for hook in run.hook_points if hook.finite])
    if not shown:
        return [element("p", "No row has finite numbers.")]
    low, high = shared_range(shown)
    figures = [
        element(
            "figure",
            element("figcaption", foreign(hook.name)),
            histogram(hook, low, high),
        )
        for hook in shown
    ]
    kinds: dict[str, list[HookPointContents]] = {}
    for hook in run.hook_points:
        if hook.layer is not None and hook.finite:
            kinds.setdefault(hook.kind, []).append(hook)
    content = [
        element(
            "p",
            "How many rows have which norm, all on the same axis of norms. Both axes are"
            " logarithmic, so that a few rows of very large norm are seen.",
            class_="soft small",
        ),
        _histogram_keys(shown, high),
        element("div", *figures, class_="columns"),
        *_left_out(run, "histograms", len(shown)),
        _histogram_numbers(shown),
    ]
    if kinds:
        content += _over_layers(run, kinds)
    return content


def _histogram_numbers(shown: Sequence[HookPointContents]) -> Html:
    rows = [
        [foreign(hook.name), number(bar.low), number(bar.high), count(bar.rows)]
        for hook in shown
        for bar in bars_of(hook.statistics)
    ]
    zeros = [
        [foreign(hook.name), "0", "0", count(hook.statistics.norms["zero"])]
        for hook in shown
        if hook.statistics.norms.get("zero")
    ]
    columns = ("hook point", "norm from", "below", "rows")
    return details("The histograms as a table", table("Histograms of norms", columns, rows + zeros))


def _over_layers(run: RunContents, kinds: dict[str, list[HookPointContents]]) -> list[Html]:
    plotted = {kind: hooks for kind, hooks in kinds.items() if len(hooks) > 1}
    if not plotted:
        return []
    highest = max(hook.layer or 0 for hooks in kinds.values() for hook in hooks) + 1
    told = run.config.get("num_hidden_layers")
    layers = max(highest, told) if type(told) is int and 0 < told < 10_000 else highest
    figures, rows, drawn = [], [], set()
    for kind, hooks in list(plotted.items())[:PLOTTED]:
        series = series_of(hooks)
        drawn.update(one.name for one in series)
        figures.append(
            element(
                "figure",
                element("figcaption", foreign(kind)),
                over_layers(kind, series, layers),
            )
        )
        values = {one.name: dict(one.points) for one in series}
        for hook in sorted(hooks, key=lambda hook: hook.layer or 0):
            of_block = [values.get(one.name, {}).get(hook.layer or 0) for one in SERIES]
            rows.append([foreign(hook.name), count(hook.layer or 0), *map(number, of_block)])
    columns = ("hook point", "block", *(one.title for one in SERIES))
    return [
        element("h3", "Norms over the blocks of the model"),
        element(
            "p",
            *(key(_series_sign(one.name), one.title) for one in SERIES if one.name in drawn),
        ),
        element("div", *figures, class_="columns"),
        details("The norms as a table", table("Norms over the blocks", columns, rows)),
    ]


def _histogram_keys(shown: Sequence[HookPointContents], high: float) -> Html:
    """Return what the lines and colours are of histograms whose axis ends at `high`."""
    keys = [("median", "median norm")]
    if any(hook.large.limit <= high for hook in shown):
        keys.append(("limit", f"{shown[0].large.multiple:g} times the median"))
    signs = [
        (element("line", x1=0, x2=26, y1=5, y2=5, class_=f"marker {name}"), title)
        for name, title in keys
    ]
    if any(hook.large.rows for hook in shown):
        bar = element("rect", x=8, y=0, width=10, height=10, class_="large")
        signs.append((element("g", bar, class_="bar"), "rows above it"))
    return element("p", *(key(*sign) for sign in signs))


def _series_sign(name: str) -> Html:
    return element(
        "g",
        element("path", d="M0 5L26 5"),
        element("rect", x=10, y=2, width=6, height=6)
        if name == "median"
        else element("circle", cx=13, cy=5, r=3.5 if name == "mean" else 2.5),
        class_=f"series {name}",
    )


def _spread(hooks: Sequence[HookPointContents]) -> list[HookPointContents]:
    """Return at most `PLOTTED` of some hook points, from the first to the last."""
    if len(hooks) <= PLOTTED:
        return list(hooks)
    return [hooks[round(n * (len(hooks) - 1) / (PLOTTED - 1))] for n in range(PLOTTED)]


def _left_out(run: RunContents, what: str, shown: int) -> list[Html]:
    left = len(run.hook_points) - shown
    if left <= 0:
        return []
    text = f"{what} of {count(shown)} of {count(len(run.hook_points))} hook points"
    return [element("p", text[0].upper() + text[1:] + ".", class_="soft small")]


def large_section(run: RunContents) -> list[Html]:
    """Return the section about rows of large norm."""
    columns = (
        *("hook point", "rows", "share", "at position 0", "mean", "mean without"),
        *("mean norm", "mean norm without", "positions", "tokens"),
    )
    rows = []
    with_large = [hook for hook in run.hook_points if hook.large.rows + hook.large.unsettled]
    for hook in with_large:
        found = hook.large
        positions, tokens = found.places
        rows.append(
            [
                foreign(hook.name),
                _rows(found),
                f"{found.rows / hook.finite:.3%}" if hook.finite else "–",
                "–" if found.at_position_0 is None else count(found.at_position_0),
                number(found.mean),
                number(found.mean_without),
                number(found.mean_norm),
                number(found.mean_norm_without),
                joined(_times(positions)),
                _tokens(tokens, run.totals.vocabulary),
            ]
        )
    multiple = f"{run.hook_points[0].large.multiple:g}" if run.hook_points else "10"
    content = [
        element(
            "p",
            f"Rows with a norm above {multiple} times the median of their hook point. Most are"
            " attention sinks, such as the first token of a sample. They are stored like all other"
            " rows, and they change means, variances and everything trained on them; ",
            element("code", f"max_norm_multiple={multiple}"),
            " leaves them out when rows are read.",
            class_="soft small",
        ),
    ]
    if rows:
        content.append(table("Rows of large norm", columns, rows, lists=2))
    without = [hook.name for hook in run.hook_points if hook not in with_large]
    if without:
        content.append(
            element("p", f"Hook points without such rows: {few(without)}.", class_="soft small")
        )
    known = [hook for hook in run.hook_points if hook.statistics.largest]
    if len(known) > PLOTTED:
        known = [hook for hook in known if hook in with_large] or known
    listed = _spread(known)
    if listed:
        content.append(element("h3", "The rows of largest norm"))
        content += [_largest(hook, run.totals.vocabulary) for hook in listed]
        content += _left_out(run, "largest rows", len(listed))
    return content


def _rows(found: LargeNorms) -> str:
    """Return the number of large rows, or the two numbers that it is between."""
    if not found.unsettled:
        return count(found.rows)
    return f"{count(found.rows)} to {count(found.rows + found.unsettled)}"


def _times(values: Sequence[Sequence[int]]) -> str:
    most = 4
    shown = [str(v) if times == 1 else f"{v} ({count(times)}×)" for v, times in values[:most]]
    return ", ".join(shown + ["…"] * (len(values) > most)) or "–"


def _tokens(values: Sequence[Sequence[int]], vocabulary: Vocabulary) -> Html:
    """Return token ids with their texts and numbers of rows, as `_times` does."""
    most = 4
    parts: list[Html | str] = []
    for token_id, times in values[:most]:
        known = vocabulary.get(token_id)
        parts += [", "] * bool(parts)
        parts.append(element("code", token(text_of(known))) if known else str(token_id))
        if times > 1:
            parts.append(f" ({count(times)}×)")
    return joined(*parts, ", …" if len(values) > most else "") if parts else joined("–")


def _largest(hook: HookPointContents, vocabulary: Vocabulary) -> Html:
    largest = hook.statistics.largest or ()
    median = hook.statistics.median_norm()
    rows = [
        [
            foreign(row.task_id, 60),
            count(row.sample_idx),
            "–" if row.position < 0 else count(row.position),
            "–" if row.token_id < 0 else str(row.token_id),
            token(text_of(vocabulary.get(row.token_id, b""))),
            count(row.step),
            number(row.norm),
            number(row.norm / median) if median else "–",
        ]
        for row in largest[:LARGEST_SHOWN]
    ]
    columns = (
        "task",
        "sample",
        "position",
        "token id",
        "token",
        "step",
        "norm",
        "times the median",
    )
    title = joined(foreign(hook.name), f": {len(rows)} rows of largest norm")
    return details(title, table(f"Rows of largest norm of {hook.name}", columns, rows, texts=1))
