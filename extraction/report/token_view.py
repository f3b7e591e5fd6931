"""Some samples of a run as text, each kept token coloured by the norm of its row."""

import itertools
import math

from extraction.report import markup
from extraction.report.contents import RunContents
from extraction.report.markup import Html, count, element, foreign, foreign_lines, joined, number
from extraction.report.samples import ShownSample, ShownToken
from extraction.report.style import TOKEN_LIMITS
from extraction.run.vocabulary import Vocabulary, text_of

PROMPT_SHOWN = 1200
"""Most characters of a prompt or a generated text."""


def samples_section(run: RunContents) -> list[Html]:
    """Return the section with the samples."""
    found = run.samples
    if found.problem is not None:
        return [element("p", "Samples cannot be shown: ", foreign(found.problem, 1000))]
    if not found.samples:
        return [element("p", "The run has no rows.")]
    medians = {
        hook.name: hook.statistics.median_norm() if hook.finite else math.nan
        for hook in run.hook_points
    }
    multiples = {hook.name: hook.largest_multiple for hook in run.hook_points}
    first = max(found.hook_points, key=lambda name: multiples[name])
    chosen = [medians[name] for name in found.hook_points]
    options = [
        element("option", name, data_median=repr(median), selected=name == first)
        for name, median in zip(found.hook_points, chosen, strict=True)
    ]
    return [
        element(
            "p",
            "The first samples of the first batch. Tokens with a row are coloured by its norm,"
            " divided by the median norm of the hook point; grey tokens have no row. Point at a"
            " token, or move with the arrow keys, to see its values.",
            class_="soft small",
        ),
        element(
            "div",
            element("label", "Colour by ", element("select", *options, id="hook")),
            class_="controls",
        ),
        element("ul", *_scale(), class_="scale", aria_label="Norm divided by the median"),
        *(
            _sample(sample, found.hook_points, chosen, first, run.totals.vocabulary)
            for sample in found.samples
        ),
    ]


def _scale() -> list[Html]:
    edges = [f"{limit:g}" for limit in TOKEN_LIMITS]
    names = [
        f"up to {edges[0]}",
        *(f"{low}–{high}" for low, high in itertools.pairwise(edges)),
        f"above {edges[-1]} × median",
    ]
    return [element("li", name, class_=f"c{n}") for n, name in enumerate(names)]


def _sample(
    sample: ShownSample,
    hooks: tuple[str, ...],
    medians: list[float],
    coloured_by: str,
    vocabulary: Vocabulary,
) -> Html:
    facts = [f"sample {sample.sample_idx}", f"{count(sample.rows)} rows"]
    if sample.finish_reason is not None:
        facts.append(f"finished by {sample.finish_reason}")
    tokens = [_token(t, hooks, medians, coloured_by, vocabulary) for t in sample.tokens]
    before = f"{count(sample.tokens_before)} tokens before … "
    after = f" … {count(sample.tokens_after)} tokens after"
    content = [
        element("h3", foreign(sample.task_id, 100)),
        element("p", foreign(", ".join(facts)), class_="soft small"),
    ]
    for title, text in (("prompt", sample.prompt), ("generated text", sample.text)):
        if text:
            content.append(
                element(
                    "div",
                    foreign_lines(text, PROMPT_SHOWN),
                    class_="prompt",
                    role="group",
                    aria_label=title,
                    tabindex=0,
                )
            )
    content += [
        element("p", "Values of a token stand here.", class_="readout", aria_live="polite"),
        element(
            "div",
            element("span", before) if sample.tokens_before else "",
            *tokens,
            element("span", after) if sample.tokens_after else "",
            class_="tokens mono",
            role="group",
            aria_label="Tokens; the arrow keys move between those with a row",
        ),
    ]
    return element("div", *content, class_="sample")


def _token(
    token: ShownToken,
    hooks: tuple[str, ...],
    medians: list[float],
    coloured_by: str,
    vocabulary: Vocabulary,
) -> Html:
    number_or_dot = str(token.token_id) if token.token_id >= 0 else "·"
    known = vocabulary.get(token.token_id)
    text = joined(number_or_dot) if not known else markup.token(text_of(known))
    if token.norms is None:
        return element("span", text)
    at = hooks.index(coloured_by)
    place = f"position {token.position}" if token.position >= 0 else "position not recorded"
    told = [place, f"token id {number_or_dot}", f"step {token.step}"] + [
        f"{hook} norm {number(norm)} ({number(norm / median if median else None)} × median)"
        for hook, norm, median in zip(hooks, token.norms, medians, strict=True)
    ]
    return element(
        "button",
        text,
        type="button",
        class_=colour_class(token.norms[at], medians[at]),
        title=", ".join(told),
        data_n=" ".join(f"{norm:.6g}" for norm in token.norms),
    )


def colour_class(norm: float, median: float) -> str:
    """Return the class of a token's colour."""
    if not math.isfinite(norm):
        return "cx"
    return f"c{sum(norm > limit * median for limit in TOKEN_LIMITS)}"
