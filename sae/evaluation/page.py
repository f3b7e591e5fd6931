"""The figures and the metrics of the trainings as one HTML page, without network or other files.

Texts of others (names, addresses, settings) go through `markup`, which makes them text of the page.
"""

import json
from collections.abc import Iterable, Sequence

from extraction.printable import printable
from extraction.report.drawing import key
from extraction.report.markup import Html, count, cut, element, foreign, joined, number
from extraction.report.style import TOKEN_LIMITS
from extraction.report.tables import details, pairs, table
from extraction.report.template import frame
from extraction.version import __version__
from sae.evaluation.columns import MODEL_COLUMNS, ROW_COLUMNS, Column
from sae.evaluation.lines import Line, densities, line_class, over_rows, points_of
from sae.evaluation.rows import BINS_PER_DECADE
from sae.evaluation.run import Evaluated, Evaluation

METRICS = (
    ("loss", "loss", "loss"),
    ("fvu", "Fraction of variance unexplained", "FVU"),
    ("l0", "Active latents of a row", "L0"),
    ("dead", "Dead latents", "latents"),
    ("rows_per_second", "Rows per second", "rows/s"),
)
"""Metric of the training, title of its plot, title of its axis."""

SECTIONS = (
    ("autoencoders", "Autoencoders"),
    ("rows", "On rows"),
    ("model", "In the model"),
    ("training", "Training"),
    ("density", "Density of latents"),
)

LONGEST_NAME = 60
DENSE = 0.1
"""A latent that is active in more than this part of the rows is dense."""


def page_of(evaluation: Evaluation) -> str:
    """Return the page of an evaluation."""
    several = evaluation.autoencoders
    has_model = any(one.model for one in several)
    contents = {
        "autoencoders": _autoencoders(several),
        "rows": _rows(evaluation),
        **({"model": _model(evaluation)} if has_model else {}),
        "training": _training(several),
        "density": _density(several),
    }
    titles = dict(SECTIONS)
    name = several[0].name if len(several) == 1 else f"{count(len(several))} autoencoders"
    body = joined(
        element("header", *_header(evaluation, name, [(id_, titles[id_]) for id_ in contents])),
        element(
            "main",
            *_warnings(several),
            *(_section(id_, titles[id_], content) for id_, content in contents.items()),
        ),
        element("footer", f"Made by version {__version__}, python -m sae evaluate."),
    )
    return frame(
        f"{cut(printable(name), 100)}: evaluation", body, {"limits": json.dumps(TOKEN_LIMITS)}
    )


def _section(id_: str, title: str, content: Iterable[Html]) -> Html:
    heading = element("h2", title, id=f"{id_}-title")
    return element("section", heading, *content, id=id_, aria_labelledby=f"{id_}-title")


def _header(evaluation: Evaluation, name: str, sections: Sequence[tuple[str, str]]) -> list[Html]:
    several, first = evaluation.autoencoders, evaluation.autoencoders[0]
    facts = [("rows", count(first.rows.all_rows.rows)), ("autoencoders", count(len(several)))]
    if len(several) == 1:
        facts += [
            ("FVU without sinks", number(first.rows.without_sinks.fvu)),
            ("active latents", number(first.rows.without_sinks.l0)),
            ("dead latents", count(first.rows.dead)),
        ]
        if first.model:
            facts.append(("CE recovered", number(first.model.ce_recovered)))
    where = evaluation.settings.activations_dir
    return [
        element("p", "Evaluation of", class_="over"),
        element("h1", foreign(name, 120)),
        element("p", "on rows of ", foreign(where), class_="over"),
        element(
            "dl",
            *(element("div", element("dt", k), element("dd", v)) for k, v in facts),
            class_="facts",
        ),
        element(
            "nav",
            *(element("a", title, href=f"#{id_}") for id_, title in sections),
            aria_label="Sections",
        ),
    ]


def _warnings(several: Sequence[Evaluated]) -> list[Html]:
    found = [
        (
            "Trained on these rows.",
            "On other rows these are worse than the page says:",
            [one for one in several if one.trained_on],
        ),
        (
            "Rows that are not finite.",
            "They were left out of the figures of:",
            [one for one in several if one.rows.not_finite],
        ),
    ]
    items = [
        element(
            "li",
            element("b", title),
            f" {text} ",
            *_listed(which),
            class_="message warning",
        )
        for title, text, which in found
        if which
    ]
    if not items:
        return []
    return [
        element(
            "section",
            element("h2", "Warnings"),
            element("ul", *items, class_="messages"),
            class_="warnings",
            aria_label="Warnings",
        )
    ]


def _listed(several: Sequence[Evaluated]) -> list[str]:
    names = [part for one in several for part in (", ", foreign(one.name, LONGEST_NAME))]
    return [*names[1:], "."]


def _autoencoders(several: Sequence[Evaluated]) -> list[Html]:
    columns = (
        *("autoencoder", "width", "latents", "k", "rows of the training"),
        *("hook point", "architecture"),
    )
    rows = []
    for one in several:
        sae, target = one.sae, one.target
        trained = sae.metadata.get("rows_trained_on")
        hook = one.hook_point if target is None else f"{one.hook_point} to {target}"
        rows.append(
            [
                foreign(one.name, LONGEST_NAME),
                count(sae.d_in) if sae.d_in == sae.d_out else f"{sae.d_in:,} to {sae.d_out:,}",
                count(sae.d_sae),
                _k(one),
                count(trained) if type(trained) is int else "–",
                foreign(hook, LONGEST_NAME),
                foreign(_architecture(one), LONGEST_NAME),
            ]
        )
    addresses = [(cut(one.name, LONGEST_NAME), foreign(one.address)) for one in several]
    return [
        table("Autoencoders", columns, rows, lists=2),
        details("Where they were read", pairs("Addresses of the autoencoders", addresses)),
    ]


def _k(one: Evaluated) -> str:
    """Return the active latents of a row that topk and batch_topk have, or were trained for."""
    settings = one.sae.metadata.get("training_settings")
    trained = settings.get("k") if isinstance(settings, dict) else None
    by_batch = "batch_topk" in str(one.sae.metadata.get("training_architecture"))
    k = trained if by_batch else one.sae.k
    return count(k) if type(k) is int else "–"


def _architecture(one: Evaluated) -> str:
    trained = one.sae.metadata.get("training_architecture")
    own = one.sae.architecture
    return f"{trained}, as {own}" if isinstance(trained, str) and trained != own else own


def _figures(caption: str, several: Sequence[Evaluated], columns: Sequence[Column]) -> Html:
    rows = [
        [foreign(one.name, LONGEST_NAME), *(_shown(c.value_of(one)) for c in columns)]
        for one in several
    ]
    return table(caption, ("autoencoder", *(column.title for column in columns)), rows)


def _shown(value: float | int | None) -> str:
    return count(value) if isinstance(value, int) else number(value)


def _meanings(columns: Sequence[Column]) -> Html:
    lines = [element("li", element("b", c.title), f": {c.meaning}") for c in columns]
    return details("What the figures are", element("ul", *lines, class_="definitions"))


def _rows(evaluation: Evaluation) -> list[Html]:
    several, multiple = evaluation.autoencoders, evaluation.settings.max_norm_multiple
    sinks = [
        [
            foreign(one.name, LONGEST_NAME),
            count(one.rows.all_rows.rows),
            count(one.rows.all_rows.rows - one.rows.without_sinks.rows),
            number(one.rows.max_norm),
            count(one.rows.not_finite),
        ]
        for one in several
    ]
    columns = ("autoencoder", "rows", "sinks", "norm of a sink above", "not finite")
    return [
        element(
            "p",
            f"An attention sink is a row whose norm is above {multiple:g} times the median. A few"
            " of them may decide the figures of all rows.",
            class_="soft small",
        ),
        _figures("Figures of rows", several, ROW_COLUMNS),
        _meanings(ROW_COLUMNS),
        details("The rows", table("Rows of each autoencoder", columns, sinks)),
    ]


def _model(evaluation: Evaluation) -> list[Html]:
    shown = [one for one in evaluation.autoencoders if one.model]
    rows = [
        [
            foreign(one.name, LONGEST_NAME),
            count(one.model.tokens),
            count(one.model.special),
            count(one.model.sinks),
        ]
        for one in shown
        if one.model
    ]
    columns = ("autoencoder", "predictions", "special tokens", "sinks")
    return [
        element("p", "texts of ", foreign(evaluation.settings.inputs), class_="over"),
        element("p", "in ", foreign(evaluation.settings.model_path or ""), class_="over"),
        element(
            "p",
            "Special tokens and attention sinks keep their values, and predictions made at them are"
            " not counted.",
            class_="soft small",
        ),
        _figures("Figures in the model", shown, MODEL_COLUMNS),
        _meanings(MODEL_COLUMNS),
        details("The tokens", table("Tokens of each autoencoder", columns, rows)),
    ]


def _training(several: Sequence[Evaluated]) -> list[Html]:
    figures: list[Html] = []
    last: dict[str, list[str]] = {one.name: [foreign(one.name, LONGEST_NAME)] for one in several}
    drawn: dict[int, Evaluated] = {}
    for metric, title, axis_title in METRICS:
        lines = [
            Line(place, cut(one.name, LONGEST_NAME), points)
            for place, one in enumerate(several)
            if (points := points_of(one.metrics, metric))
        ]
        drawn |= {line.place: several[line.place] for line in lines}
        ends = {several[line.place].name: line.points[-1][1] for line in lines}
        for name, cells in last.items():
            cells.append(number(ends.get(name)))
        if lines:
            plot = over_rows(title, axis_title, lines)
            figures.append(element("figure", element("figcaption", title.capitalize()), plot))
    if not figures:
        return [element("p", "There is no metrics.jsonl beside the autoencoders' folders.")]
    keys = [
        key(
            element("g", element("path", d="M0 5L26 5"), class_=f"series {line_class(place)}"),
            foreign(one.name, LONGEST_NAME),
        )
        for place, one in sorted(drawn.items())
    ]
    columns = ("autoencoder", *(title for _, title, _ in METRICS))
    return [
        element(
            "p",
            "Over the batches of the training: losses are of scaled rows, and batch architectures"
            " choose latents by batch, so the figures differ a little from those on rows.",
            class_="soft small",
        ),
        element("p", *keys),
        element("div", *figures, class_="columns"),
        details("The ends of the lines", table("Metrics at the end", columns, last.values())),
    ]


def _density(several: Sequence[Evaluated]) -> list[Html]:
    histograms = {one.name: one.rows.histogram() for one in several}
    bars = [bar for histogram in histograms.values() for bar in histogram]
    rows = [
        [
            foreign(one.name, LONGEST_NAME),
            count(one.rows.dead),
            count(int((one.rows.densities > DENSE).sum())),
            number(float(one.rows.densities.max())),
        ]
        for one in several
    ]
    columns = ("autoencoder", "dead", f"in more than {DENSE:.0%} of rows", "largest density")
    content = [table("Densities of latents", columns, rows)]
    if not bars:
        return content
    low = min(-1.0, *(start for start, _, _ in bars))
    most = max(latents for _, _, latents in bars)
    figures = [
        element(
            "figure",
            element("figcaption", foreign(name, LONGEST_NAME)),
            densities(cut(name, LONGEST_NAME), histogram, low, most),
        )
        for name, histogram in histograms.items()
    ]
    numbers = [
        [foreign(name, LONGEST_NAME), f"{start:g}", f"{end:g}", count(latents)]
        for name, histogram in histograms.items()
        for start, end, latents in histogram
    ]
    titles = ("autoencoder", "log10 from", "to", "latents")
    return [
        element(
            "p",
            "In which part of the rows without attention sinks each latent is active, in bins of"
            f" 1/{BINS_PER_DECADE} of a power of ten. Dead latents are in no bin.",
            class_="soft small",
        ),
        *content,
        element("div", *figures, class_="columns"),
        details("The histograms as a table", table("Histograms of densities", titles, numbers)),
    ]
