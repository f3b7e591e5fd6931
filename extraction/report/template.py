"""The frame of the page: its script, and the policy that allows this script and nothing else.

The policy names styles and script by their digests. So even markup that came from a text of a run
could neither run a script nor load anything.
"""

import base64
import hashlib
from collections.abc import Mapping

from extraction.report.markup import Html, element, joined
from extraction.report.style import STYLE

SCRIPT = """
(function () {
  "use strict";
  var limits = JSON.parse(document.body.dataset.limits);
  var select = document.getElementById("hook");
  function norms(token) { return token.dataset.n.split(" ").map(Number); }
  function colour() {
    var chosen = select.selectedIndex;
    document.querySelectorAll(".tokens button").forEach(function (token) {
      var value = norms(token)[chosen], n = 0;
      var median = Number(select.options[chosen].dataset.median);
      while (n < limits.length && value > limits[n] * median) { n += 1; }
      token.className = isFinite(value) ? "c" + n : "cx";
    });
  }
  function tell(token) {
    var sample = token.closest(".sample"), readout = sample.querySelector(".readout");
    readout.textContent = token.title;
    sample.querySelectorAll(".tokens button").forEach(function (one) {
      one.tabIndex = one === token ? 0 : -1;
    });
  }
  document.querySelectorAll(".tokens").forEach(function (tokens) {
    var all = Array.prototype.slice.call(tokens.querySelectorAll("button"));
    all.forEach(function (token, n) { token.tabIndex = n ? -1 : 0; });
    ["mouseover", "focusin", "click"].forEach(function (event) {
      tokens.addEventListener(event, function (e) {
        var token = e.target.closest("button");
        if (token) { tell(token); }
      });
    });
    tokens.addEventListener("keydown", function (e) {
      var at = all.indexOf(document.activeElement);
      var to = {ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
                Home: 0, End: all.length - 1}[e.key];
      if (at >= 0 && to !== undefined && all[to]) { e.preventDefault(); all[to].focus(); }
    });
  });
  if (select) {
    select.addEventListener("change", colour);
    colour();
  }
})();
"""


def frame(
    title: str,
    body: Html,
    told: Mapping[str, str],
    *,
    script: str = SCRIPT,
    style: str = STYLE,
    data: Mapping[str, str] | None = None,
    loads_files: bool = False,
) -> str:
    """Return the whole document.

    Args:
        title: title of the document.
        body: content of its body.
        told: what the script reads of the body's `data-` attributes, by name.
        script: the script.
        style: the styles.
        data: JSON texts, by the ids of their elements.
        loads_files: whether the script may load scripts from the page's own folder.
    """
    attributes = {f"data_{name}": value for name, value in told.items()}
    own = " 'self'" if loads_files else ""
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'{own};"
        " base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        Html(f"<style>{style}</style>"),
    )
    texts = [
        Html(f'<script type="application/json" id="{id_}">{_inert(text)}</script>')
        for id_, text in (data or {}).items()
    ]
    page = element(
        "html",
        head,
        element("body", body, *texts, Html(f"<script>{script}</script>"), **attributes),
        lang="en",
    )
    return joined(Html("<!DOCTYPE html>\n"), page, Html("\n"))


def _inert(text: str) -> str:
    """Return a JSON text that cannot end its element; `<` occurs only within its strings."""
    return text.replace("<", "\\u003c")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
