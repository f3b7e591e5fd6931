"""The sections of the page, in their order: what may be wrong first, how to load the run last."""

import json
import math
import re
import shlex
from collections.abc import Iterable

from extraction.report.contents import RunContents
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
from extraction.report.norm_sections import large_section, norms_section
from extraction.report.run_facts import time_section, what_it_is
from extraction.report.style import TOKEN_LIMITS
from extraction.report.tables import details, pairs, table
from extraction.report.template import frame
from extraction.report.token_view import samples_section
from extraction.report.warnings import messages_of
from extraction.run.statistics import RowStatistics
from extraction.version import __version__

FILES_SHOWN = 12

SECTIONS = (
    ("run", "The run"),
    ("hooks", "Hook points"),
    ("norms", "Norms of rows"),
    ("large", "Rows of large norm"),
    ("time", "Time"),
    ("samples", "Samples"),
    ("files", "Files, and how to load them"),
)


def page_of(run: RunContents) -> str:
    """Return the page of a run."""
    name = _short_name(run) or "activations"
    body = joined(
        element("header", *_header(run)),
        element(
            "main",
            _warnings(run),
            _section("run", what_it_is(run)),
            _section("hooks", _hook_points(run)),
            _section("norms", norms_section(run)),
            _section("large", large_section(run)),
            _section("time", time_section(run)),
            _section("samples", samples_section(run)),
            _section("files", _files(run)),
        ),
        element(
            "footer",
            f"Made by version {__version__} from the run's commit records. Activations were not"
            " checked; ",
            element("code", f"python -m extraction verify {shlex.quote(run.address)}"),
            " does that.",
        ),
    )
    return frame(f"{cut(name, 100)}: activations", body, {"limits": json.dumps(TOKEN_LIMITS)})


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
        element("h1", foreign(_short_name(run) or "a model without a name", 120)),
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


def _short_name(run: RunContents) -> str:
    """Return the model's name; of an address the last part."""
    name = run.identity.model_name or ""
    is_address = name.startswith(("/", "./", "../", "~")) or re.match(r"\w+://", name)
    return name.rstrip("/").rpartition("/")[2] if is_address else name


def _batches(run: RunContents) -> str:
    done = count(len(run.totals))
    return done if run.is_complete or run.planned is None else f"{done} of {count(run.planned)}"


def _warnings(run: RunContents) -> Html:
    found = [
        element("li", element("b", one.title), " ", *one.text, class_=f"message {one.kind}")
        for one in messages_of(run)
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
        *("hook point", "rows", "width", "files", "size", "mean", "root mean square"),
        *("median norm", "mean norm", "largest norm", "non-finite rows"),
    )
    rows = []
    for hook in run.hook_points:
        statistics = hook.statistics
        rows.append(
            [
                foreign(hook.name),
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
            "A row is the vector of one token; mean and root mean square are over all numbers of"
            " all rows. Statistics leave out rows with a number that is not finite. The median norm"
            " is read from a histogram, right within 4.5%.",
            class_="soft small",
        ),
        *_definitions(run),
        table("Hook points of the run", columns, rows),
    ]


def _root_mean_square(statistics: RowStatistics) -> float | None:
    if not statistics.values:
        return None
    return math.sqrt(max(0.0, statistics.total_squares / statistics.values))


def _definitions(run: RunContents) -> list[Html]:
    """Return what each kind of hook point is, as far as the table of hook points tells."""
    told = {hook.kind: hook.definition for hook in run.hook_points if hook.definition}
    lines = [
        element("li", element("b", foreign(kind)), f": {definition}")
        for kind, definition in told.items()
    ]
    return [element("ul", *lines, class_="definitions")] if lines else []


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
                f"python -m extraction verify {shlex.quote(run.address)}\n"
                f"python -m extraction export {shlex.quote(run.address)} rows.npz --to npz",
            ),
        ),
        details(
            f"The first {len(listed)} files of activations",
            table("Files of activations", ("file", "batch", "rows"), listed),
        ),
    ]
