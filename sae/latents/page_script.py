"""The script and the styles of the page of latents.

All texts are set as `textContent`. The list shows some latents at a time; a latent's rows are drawn
when it is chosen.
"""

from extraction.report.style import STYLE as REPORT_STYLE

STYLE = (
    REPORT_STYLE
    + """
.browse{display:grid;grid-template-columns:minmax(0,5fr) minmax(0,7fr);gap:0 28px;
 align-items:start}
.browse>*{min-width:0}
.list{position:sticky;top:8px;max-height:calc(100vh - 16px);display:flex;flex-direction:column}
.list ol{list-style:none;margin:0;padding:0;overflow-y:auto;border-top:1px solid var(--line)}
.list li{border-bottom:1px solid var(--line)}
.list li button{font:inherit;font-size:14px;width:100%;display:grid;text-align:left;color:inherit;
 grid-template-columns:4.6em 4.8em 4.8em minmax(0,1fr);gap:2px 10px;padding:8px 6px;border:0;
 background:none;cursor:pointer;font-variant-numeric:tabular-nums;border-radius:0}
.list li button:focus-visible{outline-offset:-2px}
.list li button:hover{background:var(--code)}
.list li [aria-current]{background:var(--note);color:var(--note-text)}
.list b{font-weight:600}
.names{overflow:hidden;text-overflow:ellipsis;white-space:pre}
.heads{display:grid;grid-template-columns:4.6em 4.8em 4.8em minmax(0,1fr);gap:10px;font-size:13px;
 color:var(--soft);padding:2px 6px}
input{font:inherit;color:var(--text);background:var(--card);border:1px solid var(--soft);
 border-radius:6px;padding:4px 8px;max-width:100%;min-width:0}
input[type=search]{width:14em}
.controls label{display:inline-flex;gap:6px;align-items:center}
.step{font:inherit;font-size:14px;color:var(--accent);background:var(--card);
 border:1px solid var(--soft);border-radius:6px;padding:5px 12px;cursor:pointer}
.step:disabled{color:var(--soft);cursor:default;border-style:dashed}
.pages{display:flex;gap:8px 12px;align-items:center;padding:10px 0 0;font-size:14px;flex-wrap:wrap}
#latent h3:first-child{font-size:20px;margin-top:0}
#latent h4{font-size:14px;font-weight:650;margin:20px 0 4px}
.example{padding:8px 0;border-top:1px solid var(--line)}
.example .tokens{line-height:1.75}
.example .tokens button,.example .tokens span{margin:0;padding:1px;border-radius:2px}
.example .tokens .zero{color:var(--text)}
.example .tokens .own{outline:1.5px solid var(--text);outline-offset:-1px}
.example .tokens button:hover,.example .tokens :focus-visible{outline:2px solid var(--accent)}
.where{color:var(--soft);font-size:13px;margin:0 0 2px;max-width:none;overflow-wrap:anywhere;
 unicode-bidi:isolate}
.chips{display:flex;flex-wrap:wrap;gap:5px;margin:0 0 6px;padding:0;list-style:none;font-size:14px}
.chips li{background:var(--code);border-radius:4px;padding:2px 7px;white-space:pre;max-width:100%;
 overflow:hidden;text-overflow:ellipsis;unicode-bidi:isolate}
.chips li.step{background:var(--card)}
.chips .step{padding:2px 9px;display:inline-flex;align-items:center}
.chips small{color:var(--soft)}
.back{display:none}
@media (max-width:860px){
 .browse{grid-template-columns:minmax(0,1fr)}
 .list{position:static;max-height:none}
 .list ol{max-height:62vh}
 #latent{border-top:1px solid var(--line);padding-top:16px;margin-top:16px;scroll-margin-top:0}
 .back{display:inline-block}
 .list li button,.step,select,input{min-height:40px}
}
@media (max-width:640px){
 .list li button,.heads{grid-template-columns:3.8em 4.7em 3.6em minmax(0,1fr);gap:2px 6px}
 input[type=search]{width:100%}
 .controls label:first-child{width:100%}
}
@media print{.list,.back{display:none}.browse{display:block}}
"""
)

SCRIPT = r"""
(function () {
  "use strict";
  var PAGE = 50, body = document.body, folder = body.dataset.folder;
  var index = null, chunks = {}, asked = {}, order = [], first = 0, current = null, texts = null;
  var by = function (id) { return document.getElementById(id); };
  var list = by("list"), detail = by("latent"), search = by("search"), sort = by("sort");
  var dead = by("dead");
  function make(name, text, attributes) {
    var one = document.createElement(name);
    if (text !== null && text !== undefined) { one.textContent = text; }
    Object.keys(attributes || {}).forEach(function (key) {
      one.setAttribute(key, attributes[key]);
    });
    return one;
  }
  function word(id) {
    if (Object.prototype.hasOwnProperty.call(index.words, id)) { return index.words[id]; }
    return id < 0 ? "·" : "[" + id + "]";
  }
  function shown(value) {
    if (value === null) { return "–"; }
    return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1)
                                                   : String(Number(value.toPrecision(3)));
  }
  function load(name) {
    var one = make("script", null, {src: folder + "/" + name});
    one.onerror = function () {
      detail.replaceChildren(make("p", folder + "/" + name +
        " cannot be read; keep that folder beside this page."));
    };
    body.appendChild(one);
  }
  function text(latent) {
    return latent[7].concat(latent[8]).map(word).join("\n").toLowerCase();
  }
  function choose() {
    var asking = search.value.trim().toLowerCase(), key = sort.value.split(" ");
    var column = Number(key[0]), sign = Number(key[1]);
    var number = /^#?[0-9]+$/.test(asking) ? Number(asking.replace("#", "")) : null;
    order = index.latents.map(function (_, place) { return place; }).filter(function (place) {
      var latent = index.latents[place];
      if (number !== null && latent[0] === number) { return true; }
      if (dead.checked && latent[2] === 0) { return false; }
      return !asking || texts[place].indexOf(asking) >= 0;
    });
    order.sort(function (a, b) {
      return sign * (index.latents[a][column] - index.latents[b][column]) || a - b;
    });
    if (number !== null) {
      order.sort(function (a, b) {
        return (index.latents[b][0] === number) - (index.latents[a][0] === number);
      });
    }
    first = 0;
    draw();
  }
  function draw() {
    var part = order.slice(first, first + PAGE);
    list.replaceChildren.apply(list, part.map(function (place) {
      var latent = index.latents[place], line = make("li"), button = make("button", null,
        {type: "button", "data-place": place});
      button.append(make("b", "#" + latent[0]), make("span", shown(latent[1])),
        make("span", shown(latent[4])),
        make("span", latent[2] ? latent[7].map(word).join("  ").trimStart() : "never active",
             {"class": "names"}));
      if (place === current) { button.setAttribute("aria-current", "true"); }
      line.append(button);
      return line;
    }));
    list.scrollTop = 0;
    by("previous").disabled = first === 0;
    by("next").disabled = first + PAGE >= order.length;
    by("count").textContent = order.length ? (first + 1) + "–" + (first + part.length) + " of " +
      order.length.toLocaleString("en") : "no latent has this number or token";
  }
  function open(place, focus) {
    current = place;
    list.querySelectorAll("button").forEach(function (one) {
      if (Number(one.dataset.place) === place) { one.setAttribute("aria-current", "true"); }
      else { one.removeAttribute("aria-current"); }
    });
    var latent = index.latents[place], chunk = latent[6];
    try { history.replaceState(null, "", "#latent-" + latent[0]); } catch (_) { /* no address */ }
    var fill = function () {
      if (current !== place) { return; }
      describe(latent, chunks[chunk]);
      if (focus) { detail.focus({preventScroll: true}); detail.scrollIntoView({block: "start"}); }
    };
    if (!chunks[chunk] && !folder) {
      chunks[chunk] = JSON.parse(by("chunk-" + chunk).textContent);
    }
    if (chunks[chunk]) { fill(); return; }
    detail.replaceChildren(make("p", "Reading …"));
    if (asked[chunk]) { asked[chunk].push(fill); return; }
    asked[chunk] = [fill];
    load(chunk + ".js");
  }
  function openNumber(number, focus) {
    for (var place = 0; place < index.latents.length; place += 1) {
      if (index.latents[place][0] === number) { open(place, focus); return true; }
    }
    return false;
  }
  function chips(entries, each) {
    var all = make("ul", null, {"class": "chips"});
    entries.forEach(function (entry) { all.append(each(entry)); });
    return all;
  }
  function describe(latent, chunk) {
    var told = chunk.latents[latent[0]], facts = make("dl", null, {"class": "facts"});
    [["density", shown(latent[1])], ["active rows", latent[2].toLocaleString("en")],
     ["mean where active", shown(latent[3])], ["largest", shown(latent[4])],
     ["decoder norm", shown(latent[5])]].forEach(function (pair) {
      var one = make("div");
      one.append(make("dt", pair[0]), make("dd", pair[1]));
      facts.append(one);
    });
    var back = make("button", "Back to the list", {type: "button", "class": "step back"});
    back.addEventListener("click", function () {
      search.scrollIntoView({block: "start"});
      var one = list.querySelector("[aria-current]") || search;
      one.focus({preventScroll: true});
    });
    var parts = [make("h3", "Latent " + latent[0]), back, facts];
    if (told.lens) {
      ["Tokens that it makes likelier", "Tokens that it makes less likely"].forEach(
        function (title, end) {
          parts.push(make("h4", title), chips(told.lens[end], function (pair) {
            var one = make("li", word(pair[0]));
            one.title = "token id " + pair[0] + ", logit " + pair[1];
            return one;
          }));
        });
    }
    if (told.nearest.length) {
      parts.push(make("h4", "Latents of similar decoder rows"));
      parts.push(chips(told.nearest, function (pair) {
        var one = make("li", null, {"class": "step"}), link = make("a", "#" + pair[0],
          {href: "#latent-" + pair[0]});
        one.append(link, make("small", " " + pair[1].toFixed(2)));
        return one;
      }));
    }
    if (!told.rows.length) { parts.push(make("p", "It is active in no row.")); }
    else {
      parts.push(make("p", "Point at a token, or move with the arrow keys, to see its values.",
        {"class": "readout", "aria-live": "polite"}));
    }
    var range = null;
    told.rows.forEach(function (row) {
      if (row[0] !== range) {
        range = row[0];
        parts.push(make("h4", range < 0 ? "Rows of largest activation" : "Random rows between " +
          shown(told.bounds[range][0]) + " and " + shown(told.bounds[range][1])));
      }
      parts.push(example(row, latent, chunk.tasks));
    });
    detail.replaceChildren.apply(detail, parts);
  }
  function example(row, latent, tasks) {
    var one = make("div", null, {"class": "example"}), at = row[6];
    var own = row[4] < 0 ? "" : ", position " + row[4];
    one.append(make("p", shown(row[5]) + " · " + tasks[row[2]] + " · sample " + row[3] + own +
      " · row " + row[1], {"class": "where"}));
    var tokens = make("div", null, {"class": "tokens mono", role: "group",
      "aria-label": "Tokens; the arrow keys move between those with an activation"});
    row[7].forEach(function (id, place) {
      var level = row[8][place], share = level / index.levels;
      var token = make(level > 0 ? "button" : "span", word(id));
      token.className = level < 0 ? "none" : level ? "c" + Math.min(6, 3 + Math.floor(4 * share))
                                                    : "zero";
      if (place === at) { token.className += " own"; }
      if (level > 0) {
        token.type = "button";
        token.tabIndex = place === at ? 0 : -1;
        var value = place === at ? row[5] : latent[4] * share;
        token.title = "“" + word(id) + "”, token id " + id +
          (row[4] < 0 ? "" : ", position " + (row[4] + place - at)) + ", activation " +
          shown(value);
      }
      tokens.append(token);
      if (word(id).indexOf("⏎") >= 0) { tokens.append(make("br")); }
    });
    one.append(tokens);
    return one;
  }
  detail.addEventListener("keydown", function (e) {
    var token = e.target.closest(".tokens button");
    if (!token) { return; }
    var all = Array.from(token.parentElement.querySelectorAll("button")), at = all.indexOf(token);
    var to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1}[e.key];
    if (to === undefined) {
      var rows = Array.from(detail.querySelectorAll(".tokens"));
      var step = {ArrowDown: 1, ArrowUp: -1}[e.key];
      var row = step && rows[rows.indexOf(token.parentElement) + step];
      if (row) { e.preventDefault(); row.querySelector("[tabindex='0']").focus(); }
      return;
    }
    if (all[to]) { e.preventDefault(); all[to].focus(); }
  });
  ["mouseover", "focusin", "click"].forEach(function (event) {
    detail.addEventListener(event, function (e) {
      var token = e.target.closest(".tokens button");
      if (token) { detail.querySelector(".readout").textContent = token.title; }
    });
  });
  list.addEventListener("click", function (e) {
    var button = e.target.closest("button");
    if (button) { open(Number(button.dataset.place), true); }
  });
  list.addEventListener("keydown", function (e) {
    var all = Array.from(list.querySelectorAll("button")), at = all.indexOf(e.target);
    var to = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1}[e.key];
    if (at >= 0 && to !== undefined && all[to]) {
      e.preventDefault();
      all[to].focus();
      open(Number(all[to].dataset.place), false);
    }
  });
  by("previous").addEventListener("click", function () { first -= PAGE; draw(); });
  by("next").addEventListener("click", function () { first += PAGE; draw(); });
  search.addEventListener("input", choose);
  sort.addEventListener("change", choose);
  dead.addEventListener("change", choose);
  search.addEventListener("keydown", function (e) {
    var one = list.querySelector("button");
    if (e.key === "ArrowDown" && one) {
      e.preventDefault();
      one.focus();
      open(Number(one.dataset.place), false);
    }
    if (e.key === "Enter" && one) { open(Number(one.dataset.place), true); }
  });
  document.addEventListener("keydown", function (e) {
    var typing = /^(INPUT|SELECT)$/.test(document.activeElement.tagName);
    if (typing || e.ctrlKey || e.metaKey || e.altKey) { return; }
    if (e.key === "/") { e.preventDefault(); search.focus(); }
    var step = {j: 1, k: -1}[e.key], at = order.indexOf(current) + (step || 0);
    if (step && index && at >= 0 && at < order.length) {
      if (at < first || at >= first + PAGE) { first = PAGE * Math.floor(at / PAGE); draw(); }
      open(order[at], false);
      var button = list.querySelector("[aria-current]");
      if (button) { button.scrollIntoView({block: "nearest"}); }
    }
  });
  function asNamed(focus) {
    var named = /^#latent-([0-9]+)$/.exec(location.hash);
    return named !== null && openNumber(Number(named[1]), focus);
  }
  window.addEventListener("hashchange", function () { if (index) { asNamed(true); } });
  function start(found) {
    index = found;
    texts = index.latents.map(text);
    choose();
    if (!asNamed(false) && order.length) { open(order[0], false); }
  }
  if (folder) {
    window.latentsIndex = start;
    window.latentsChunk = function (number, chunk) {
      chunks[number] = chunk;
      (asked[number] || []).forEach(function (fill) { fill(); });
    };
    load("index.js");
  } else {
    start(JSON.parse(by("index").textContent));
  }
})();
"""
