"""The sections of the page, in their order: what may be wrong first, how to load the run last."""

import json
import math
from collections.abc import Iterable, Sequence

from extraction.report.contents import HookPointContents, RunContents
from extraction.report.markup import (
    Html,
    count,
    cut,
    element,
    foreign,
    joined,
    number,
    size,
)
from extraction.report.plots import bars_of, histogram, over_layers, series_of, shared_range
from extraction.report.run_facts import time_section, what_it_is
from extraction.report.style import TOKEN_LIMITS
from extraction.report.tables import details, pairs, table
from extraction.report.template import frame
from extraction.report.token_view import samples_section
from extraction.report.warnings import messages_of
from extraction.run.large_norms import LargeNorms
from extraction.run.statistics import RowStatistics
from extraction.version import __version__

PLOTTED = 24
"""Most hook points with a histogram and with a table of their largest rows."""

LARGEST_SHOWN = 12
"""Rows of largest norm of a hook point that are listed."""

FILES_SHOWN = 12

SECTIONS = (
    ("run", "The run"),
    ("hooks", "Hook points"),
    ("norms", "Norms"),
    ("large", "Large norms"),
    ("time", "Time"),
    ("samples", "Samples"),
    ("files", "Files"),
)


def page_of(run: RunContents) -> str:
    """Return the page of a run."""
    name = run.identity.model_name or "activations"
    body = joined(
        element("header", *_header(run)),
        element(
            "main",
            _warnings(run),
            _section("run", what_it_is(run)),
            _section("hooks", _hook_points(run)),
            _section("norms", _norms(run)),
            _section("large", _large(run)),
            _section("time", time_section(run)),
            _section("samples", samples_section(run)),
            _section("files", _files(run)),
        ),
        element(
            "footer",
            f"Made by version {__version__} from the run's commit records. Activations were not"
            " checked; ",
            element("code", f"python -m extraction verify {run.address}"),
            " does that.",
        ),
    )
    return frame(f"{cut(name, 100)}: activations", body, json.dumps(TOKEN_LIMITS))


def _section(id_: str, content: Iterable[Html]) -> Html:
    return element(
        "section",
        element("h2", dict(SECTIONS)[id_], id=f"{id_}-title"),
        *content,
        id=id_,
        aria_labelledby=f"{id_}-title",
    )


def _header(run: RunContents) -> list[Html]:
    totals = run.totals
    facts = [
        ("rows per hook point", count(totals.n_rows)),
        ("hook points", count(len(run.hook_points))),
        ("samples with rows", count(totals.n_sequences)),
        ("batches", _batches(run)),
        ("stored", size(totals.n_bytes)),
    ]
    return [
        element("p", "Activations of", class_="over"),
        element("h1", foreign(run.identity.model_name or "a model without a name")),
        element("p", "in ", foreign(run.address), class_="over"),
        element(
            "dl",
            *(element("div", element("dt", k), element("dd", v)) for k, v in facts),
            class_="facts",
        ),
        element(
            "nav",
            *(element("a", title, href=f"#{id_}") for id_, title in SECTIONS),
            aria_label="Sections",
        ),
    ]


def _batches(run: RunContents) -> str:
    done = count(len(run.totals))
    return done if run.is_complete or run.planned is None else f"{done} of {count(run.planned)}"


def _warnings(run: RunContents) -> Html:
    found = [
        element("li", element("b", message.title), " ", *message.text, class_=f"message {kind}")
        for message in messages_of(run)
        for kind in (message.kind,)
    ]
    return element(
        "section",
        element("h2", "Warnings"),
        element("ul", *found, class_="messages"),
        class_="warnings",
        aria_label="Warnings",
    )


def _hook_points(run: RunContents) -> list[Html]:
    columns = (
        *("hook point", "rows", "width", "files", "bytes", "mean", "root mean square"),
        *("median norm", "mean norm", "largest norm", "non-finite rows"),
    )
    rows = []
    for hook in run.hook_points:
        statistics = hook.statistics
        rows.append(
            [
                _name(hook),
                count(statistics.rows),
                "–" if hook.width is None else count(hook.width),
                count(hook.files),
                size(hook.bytes),
                number(hook.large.mean),
                number(_root_mean_square(statistics)),
                number(statistics.median_norm() if hook.finite else None),
                number(hook.large.mean_norm),
                number(statistics.largest[0].norm if statistics.largest else None),
                count(statistics.nonfinite_rows),
            ]
        )
    return [
        element(
            "p",
            "A row is one vector of one token. Statistics leave out rows with a number that is not"
            " finite. The median norm is read from a histogram, right within 4.5 %.",
            class_="soft small",
        ),
        table("Hook points of the run", columns, rows),
    ]


def _root_mean_square(statistics: RowStatistics) -> float | None:
    if not statistics.values:
        return None
    return math.sqrt(max(0.0, statistics.total_squares / statistics.values))


def _name(hook: HookPointContents) -> Html:
    meaning = [element("div", hook.definition, class_="soft small")] if hook.definition else []
    return joined(foreign(hook.name), *meaning)


def _norms(run: RunContents) -> list[Html]:
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
            "How many rows have which norm, all on the same axis. Both axes are logarithmic, so"
            " that a few rows of very large norm are seen.",
            class_="soft small",
        ),
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
    highest = max(hook.layer or 0 for hooks in kinds.values() for hook in hooks) + 1
    told = run.config.get("num_hidden_layers")
    layers = max(highest, told) if type(told) is int and 0 < told < 10_000 else highest
    figures, rows = [], []
    for kind, hooks in list(kinds.items())[:PLOTTED]:
        series = series_of(hooks)
        figures.append(
            element(
                "figure",
                element("figcaption", foreign(kind)),
                over_layers(kind, series, layers),
            )
        )
        values = {one.name: dict(one.points) for one in series}
        for hook in sorted(hooks, key=lambda hook: hook.layer or 0):
            of_block = [values.get(name, {}).get(hook.layer or 0) for name in SERIES]
            rows.append([foreign(hook.name), count(hook.layer or 0), *map(number, of_block)])
    columns = ("hook point", "block", *SERIES.values())
    return [
        element("h3", "Over the blocks of the model"),
        element("p", *(_key(name, title) for name, title in SERIES.items())),
        element("div", *figures, class_="columns"),
        details("The norms as a table", table("Norms over the blocks", columns, rows)),
    ]


SERIES = {
    "mean": "mean norm",
    "without": "mean norm without large rows",
    "median": "median norm",
}


def _key(name: str, title: str) -> Html:
    sign = element(
        "svg",
        element(
            "g",
            element("path", d="M0 5L26 5"),
            element("rect", x=10, y=2, width=6, height=6)
            if name == "median"
            else element("circle", cx=13, cy=5, r=3.5 if name == "mean" else 2.5),
            class_=f"series {name}",
        ),
        viewBox="0 0 26 10",
        aria_hidden="true",
    )
    return element("span", sign, title, class_="key")


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


def _large(run: RunContents) -> list[Html]:
    columns = (
        *("hook point", "rows", "share", "at position 0", "mean", "mean without"),
        *("mean norm", "mean norm without", "positions", "token ids"),
    )
    rows = []
    for hook in run.hook_points:
        found = hook.large
        positions, tokens = found.places
        rows.append(
            [
                foreign(hook.name),
                rows_of(found),
                f"{found.rows / hook.finite:.3%}" if hook.finite else "–",
                "–" if found.at_position_0 is None else count(found.at_position_0),
                number(found.mean),
                number(found.mean_without),
                number(found.mean_norm),
                number(found.mean_norm_without),
                _times(positions),
                _times(tokens),
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
        ),
        table("Rows of large norm", columns, rows),
    ]
    known = [hook for hook in run.hook_points if hook.statistics.largest]
    shown = _spread(known)
    if shown:
        content.append(element("h3", "The rows of largest norm"))
        content += [_largest(hook) for hook in shown]
        content += _left_out(run, "largest rows", len(shown))
    return content


def rows_of(found: LargeNorms) -> str:
    """Return the number of large rows, or the two numbers that it is between."""
    if not found.unsettled:
        return count(found.rows)
    return f"{count(found.rows)} to {count(found.rows + found.unsettled)}"


def _times(values: Sequence[Sequence[int]]) -> str:
    most = 4
    shown = [str(v) if times == 1 else f"{v} ({count(times)}×)" for v, times in values[:most]]
    return ", ".join(shown + ["…"] * (len(values) > most)) or "–"


def _largest(hook: HookPointContents) -> Html:
    largest = hook.statistics.largest or ()
    median = hook.statistics.median_norm()
    rows = [
        [
            foreign(row.task_id, 60),
            count(row.sample_idx),
            "–" if row.position < 0 else count(row.position),
            "–" if row.token_id < 0 else str(row.token_id),
            count(row.step),
            number(row.norm),
            number(row.norm / median) if median else "–",
        ]
        for row in largest[:LARGEST_SHOWN]
    ]
    columns = ("task", "sample", "position", "token id", "step", "norm", "times the median")
    title = joined(foreign(hook.name), f": {len(rows)} rows of largest norm")
    return details(title, table(f"Rows of largest norm of {hook.name}", columns, rows, texts=1))


def _files(run: RunContents) -> list[Html]:
    identity, totals = run.identity, run.totals
    hook = identity.hook_points[0] if identity.hook_points else "layer_6"
    load = (
        "from extraction import ActivationDataset\n\n"
        f"dataset = ActivationDataset({run.address!r}, layer={hook!r})\n"
        "dataset[0:4]         # rows, float32 [4, width]\n"
        "dataset.keys([0])    # task, sample, position and token of a row\n"
        "for rows in dataset.batches(4096, shuffle_seed=0, max_norm_multiple=10):\n"
        "    ...              # [4096, width], without rows of large norm"
    )
    listed = [
        [foreign(name), count(batch.batch_id), count(batch.n_rows)]
        for batch in totals.batches()[:FILES_SHOWN]
        for name in batch.files.values()
    ][:FILES_SHOWN]
    about = [
        ("format", f"{identity.file_format}, {identity.dtype}"),
        (
            "files of activations",
            f"{count(totals.n_activation_files)}, {size(totals.n_activation_bytes)}",
        ),
        ("files of output lines", size(run.outputs_bytes) if run.outputs_bytes else "none"),
    ]
    return [
        pairs("Files of the run", about),
        element("h3", "To load the rows"),
        element("pre", element("code", load)),
        element("h3", "To check and convert them"),
        element(
            "pre",
            element(
                "code",
                f"python -m extraction verify {run.address}\n"
                f"python -m extraction export {run.address} rows.npz --to npz",
            ),
        ),
        details(
            f"The first {len(listed)} files of activations",
            table("Files of activations", ("file", "batch", "rows"), listed),
        ),
    ]
