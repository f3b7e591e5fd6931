"""The page of latents: a list to search and sort, and the rows of the chosen latent."""

from extraction.printable import printable
from extraction.report.markup import Html, count, cut, element, foreign, joined, number
from extraction.report.tables import details, pairs, table
from extraction.report.template import frame
from extraction.version import __version__
from sae.evaluation.lines import densities
from sae.evaluation.rows import BINS_PER_DECADE, density_histogram
from sae.latents.page_data import FOLDER, PageData
from sae.latents.page_script import SCRIPT, STYLE
from sae.latents.run import Latents

ORDERS = (
    ("1 -1", "density, largest first"),
    ("1 1", "density, smallest first"),
    ("4 -1", "largest activation"),
    ("3 -1", "mean activation"),
    ("0 1", "number"),
)
"""Column of the index and direction, and the text of the choice."""

FIRST_ORDER = "4 -1"
LONGEST_NAME = 60


def page_of(latents: Latents, data: PageData) -> str:
    """Return the page.

    Args:
        latents: what is known of each latent.
        data: its data, which stand in the page if they are embedded.
    """
    body = joined(
        element("header", *_header(latents)),
        element(
            "main",
            _section("list-of-latents", "Latents", _browser(latents)),
            _section("density", "Density", _density(latents)),
            _section("made", "How it was made", _made(latents)),
        ),
        element("footer", f"Made by version {__version__}, python -m sae latents."),
    )
    title = f"{cut(printable(_name(latents)), 100)}: latents"
    return frame(
        title,
        body,
        {"folder": "" if data.is_embedded else FOLDER},
        script=SCRIPT,
        style=STYLE,
        data=data.embedded(),
        loads_files=not data.is_embedded,
    )


def _name(latents: Latents) -> str:
    address = latents.settings.sae
    return address.rstrip("/").rpartition("/")[2] or address


def _section(id_: str, title: str, content: list[Html]) -> Html:
    heading = element("h2", title, id=f"{id_}-title")
    return element("section", heading, *content, id=id_, aria_labelledby=f"{id_}-title")


def _header(latents: Latents) -> list[Html]:
    found = latents.found
    facts = [
        ("latents", count(len(found.numbers))),
        ("active in no row", count(int((found.active == 0).sum()))),
        ("rows", count(found.rows)),
        ("active latents of a row", number(float(found.active.sum() / found.rows))),
    ]
    return [
        element("p", "Latents of", class_="over"),
        element("h1", foreign(_name(latents), 120)),
        element("p", "on rows of ", foreign(latents.settings.activations_dir), class_="over"),
        element(
            "dl",
            *(element("div", element("dt", k), element("dd", v)) for k, v in facts),
            class_="facts",
        ),
    ]


def _browser(latents: Latents) -> list[Html]:
    options = [
        element("option", text, value=value, selected=value == FIRST_ORDER)
        for value, text in ORDERS
    ]
    has_lens = latents.lens is not None
    where = "tokens of its top rows" + (" and of its logit lens" if has_lens else "")
    controls = element(
        "div",
        element(
            "label",
            "Find ",
            element(
                "input",
                id="search",
                type="search",
                autocomplete="off",
                placeholder="a token, or a number",
            ),
        ),
        element("label", "Sort by ", element("select", *options, id="sort")),
        element(
            "label", element("input", id="dead", type="checkbox", checked=True), "only active ones"
        ),
        class_="controls",
    )
    names = ("latent", "density", "largest", "tokens")
    chosen = element(
        "div",
        element("div", *(element("span", name) for name in names), class_="heads"),
        element("ol", id="list", aria_label="Latents"),
        element(
            "div",
            element("button", "Previous", type="button", id="previous", class_="step"),
            element("span", id="count", aria_live="polite"),
            element("button", "Next", type="button", id="next", class_="step"),
            class_="pages",
        ),
        class_="list",
    )
    detail = element(
        "div", id="latent", tabindex="-1", role="region", aria_label="The chosen latent"
    )
    scale = [
        element("li", text, class_=kind)
        for kind, text in (
            ("c3", "up to ¼ of the latent's largest"), ("c4", "½"), ("c5", "¾"), ("c6", "1"),
        )
    ]  # fmt: skip
    return [
        element(
            "p",
            "Density is the part of the rows in which a latent is active. A search looks for"
            f" latents by number, and among the {where}. / goes to the search,"
            " the arrow keys move through the list, j and k to the next and the previous latent.",
            class_="soft small",
        ),
        controls,
        element("ul", *scale, class_="scale", aria_label="Activation of a token"),
        element("div", chosen, detail, class_="browse"),
    ]


def _density(latents: Latents) -> list[Html]:
    bars = density_histogram(latents.found.density)
    text = element(
        "p",
        f"In which part of the rows each latent is active, in bins of 1/{BINS_PER_DECADE} of a"
        " power of ten. Latents that are active in no row are in no bin.",
        class_="soft small",
    )
    if not bars:
        return [text, element("p", "No latent is active in any row.")]
    name = cut(_name(latents), LONGEST_NAME)
    low, most = min(-1.0, *(start for start, _, _ in bars)), max(n for _, _, n in bars)
    rows = [[f"{start:g}", f"{end:g}", count(n)] for start, end, n in bars]
    titles = ("log10 from", "to", "latents")
    return [
        text,
        element("figure", densities(name, bars, low, most)),
        details("The histogram as a table", table("Histogram of densities", titles, rows)),
    ]


def _made(latents: Latents) -> list[Html]:
    settings, found, sae = latents.settings, latents.found, latents.sae
    left_out = found.all_left_out
    told = [
        ("autoencoder", foreign(settings.sae)),
        ("architecture", f"{sae.architecture}, {sae.d_in:,} to {sae.d_sae:,} latents"),
        ("model", foreign(latents.model_name)),
        ("hook point", foreign(latents.hook_point)),
        ("rows left out", ", ".join(f"{k}: {count(n)}" for k, n in left_out.items()) or "none"),
        ("logit lens", foreign(settings.model_path or "none")),
        ("seed of the random rows", count(settings.random_seed)),
    ]
    return [pairs("How the page was made", told)]
