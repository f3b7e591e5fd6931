"""Colours and styles of the page: light, dark, narrow and printed."""

LIGHT = {
    "page": "#f7f7f5",
    "card": "#ffffff",
    "text": "#1b1d21",
    "soft": "#565c66",
    "line": "#dcdcd8",
    "accent": "#1d4f91",
    "bar": "#5b86bd",
    "large": "#c2410c",
    "good-text": "#14532d",
    "good": "#e7f4ea",
    "warning-text": "#7c2d12",
    "warning": "#fdf0e3",
    "note-text": "#1e3a5f",
    "note": "#eaf0f8",
    "code": "#f1f1ee",
    "series-0": "#1d4f91",
    "series-1": "#c2410c",
    "series-2": "#0f766e",
    "series-3": "#7e22ce",
    "series-4": "#8a5a00",
    "series-5": "#be185d",
}
DARK = {
    "page": "#14161a",
    "card": "#1c1f25",
    "text": "#e6e7ea",
    "soft": "#a2a9b4",
    "line": "#343943",
    "accent": "#8ab8f2",
    "bar": "#6f9bd3",
    "large": "#fb923c",
    "good-text": "#a7e3b7",
    "good": "#16291d",
    "warning-text": "#fdc48f",
    "warning": "#35210f",
    "note-text": "#b5d0f2",
    "note": "#182536",
    "code": "#262a32",
    "series-0": "#8ab8f2",
    "series-1": "#fb923c",
    "series-2": "#5eead4",
    "series-3": "#d8b4fe",
    "series-4": "#fde047",
    "series-5": "#f9a8d4",
}
"""Colours by name. Each `...-text` stands on the colour of that name; `text`, `soft` and `accent`
on `page`, `card` and `code`; lines of `series-...` on `card`."""

SERIES_COLOURS = 6

TOKEN_LIMITS = (0.5, 0.8, 1.25, 2.0, 5.0, 10.0)
"""Norms divided by the median, between which a token has one colour."""

LIGHT_TOKENS = (
    ("#b7d3f7", "#10233d"),
    ("#dbe8fa", "#10233d"),
    ("#eeeeea", "#1b1d21"),
    ("#fdebc8", "#3b2204"),
    ("#fbd08a", "#3b2204"),
    ("#f79d4f", "#2b1502"),
    ("#9a3412", "#ffffff"),
)
DARK_TOKENS = (
    ("#244b7d", "#eaf2fd"),
    ("#22344d", "#dfeafa"),
    ("#2a2e36", "#e6e7ea"),
    ("#4a3a17", "#fdebc8"),
    ("#6b4a10", "#fff3dc"),
    ("#8f4210", "#fff1e4"),
    ("#fdba74", "#2b1502"),
)
"""Background and text of tokens, from norms far below the median to those above 10 times it."""


def _variables(colours: dict[str, str], tokens: tuple[tuple[str, str], ...]) -> str:
    pairs = {f"b{n}": background for n, (background, _) in enumerate(tokens)}
    pairs |= {f"f{n}": text for n, (_, text) in enumerate(tokens)}
    return "".join(f"--{name}:{value};" for name, value in (colours | pairs).items())


STYLE = (
    ":root{color-scheme:light dark;" + _variables(LIGHT, LIGHT_TOKENS) + "}"
    "@media (prefers-color-scheme:dark){:root{" + _variables(DARK, DARK_TOKENS) + "}}"
    "@media print{:root{"
    + _variables(LIGHT, LIGHT_TOKENS)
    + "color-scheme:light}}"
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--text);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:1240px;margin:0 auto;padding:0 24px}
header{padding-top:36px}
h1{font-size:28px;line-height:1.2;margin:4px 0 10px;overflow-wrap:anywhere;font-weight:650;
 letter-spacing:-.01em}
h2{font-size:20px;margin:0 0 12px;font-weight:650}
h3{font-size:15px;margin:22px 0 8px;font-weight:650;overflow-wrap:anywhere}
p{margin:0 0 10px;max-width:76ch}
a{color:var(--accent)}
.over{color:var(--soft);font-size:13px;margin:0;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;
 margin:18px 0}
section.warnings{padding:0;border:0;background:none}
nav{margin:0 0 4px;font-size:14px;display:flex;flex-wrap:wrap;gap:4px 16px}
.soft{color:var(--soft)}
.small{font-size:14px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:1px;
 margin:16px 0 18px;
 background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.facts div{padding:12px 16px;box-shadow:0 0 0 1px var(--line)}
.facts dt{color:var(--soft);font-size:13px}
.facts dd{margin:0;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
dl.facts{margin-block:16px}
.message{border-radius:8px;padding:11px 16px;margin:0 0 8px;list-style:none;overflow-wrap:anywhere}
.message b{font-weight:650}
.message.warning{background:var(--warning);color:var(--warning-text)}
.message.note{background:var(--note);color:var(--note-text)}
.message.good{background:var(--good);color:var(--good-text)}
.message code{background:none;padding:0}
.message a{color:inherit}
.message ul{margin:4px 0 0;padding-left:20px}
ul.messages{margin:0;padding:0}
.definitions{margin:0 0 14px;padding:0;list-style:none;font-size:14px}
.definitions b{font-weight:600}
.wide{width:fit-content;min-width:min(560px,100%);max-width:100%;overflow-x:auto;
 overscroll-behavior-x:contain;
 background:linear-gradient(to left,var(--line),transparent 12px) right/12px 100% no-repeat}
.wide thead th:first-child,.wide tbody th{position:sticky;left:0;background:var(--card)}
.wide tr>:last-child{background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding-bottom:6px}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--soft);font-weight:500;vertical-align:bottom;line-height:1.3;
 text-wrap:balance}
tbody th{font-weight:600}
td.n,th.n{text-align:right;padding-left:14px;padding-right:0}
td.n,.wide th:first-child{white-space:nowrap}
.wide wbr{display:none}
td.list,th.list{padding-left:28px;padding-right:0;min-width:150px}
tr:last-child>*{border-bottom:0}
table.pairs{max-width:640px}
table.pairs th{width:36%;min-width:110px;max-width:180px;font-weight:500;color:var(--soft);
 overflow-wrap:break-word}
table.pairs td{overflow-wrap:anywhere}
table+p,.wide+p,.columns+p{margin-top:12px}
.facts-columns{columns:330px;column-gap:40px}
.facts-columns>div{break-inside:avoid;padding-bottom:18px}
.facts-columns h3{margin-top:0}
.columns{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));
 gap:18px 40px;margin-top:14px}
.columns>*{min-width:0}
figure{margin:0;min-width:0}
figcaption{font-size:14px;font-weight:600;overflow-wrap:anywhere}
figcaption span{color:var(--soft);font-weight:400}
svg{display:block;width:100%;max-width:420px;height:auto}
svg text{fill:var(--soft);font-family:inherit}
.grid{stroke:var(--line);stroke-width:1}
.base{stroke:var(--soft);stroke-width:1}
.bar .usual{fill:var(--bar)}
.bar .large{fill:var(--large)}
.marker{stroke:var(--text);stroke-width:1.5;stroke-dasharray:1.5 2.5}
.marker.limit{stroke:var(--large);stroke-dasharray:5 3}
.series path{fill:none;stroke-width:2}
.mean path{stroke:var(--large)} .mean circle{fill:var(--large)}
.without path{stroke:var(--bar)} .without circle{fill:var(--bar)}
.median path{stroke:var(--soft);stroke-dasharray:5 3} .median rect{fill:var(--soft)}
.key{display:inline-flex;align-items:center;gap:6px;margin-right:18px;font-size:14px;
 max-width:100%;overflow-wrap:anywhere}
.key svg{width:26px;height:10px;flex:none}
details{margin-top:12px}
details+details{margin-top:2px}
details+p{margin-top:10px}
summary{cursor:pointer;color:var(--accent);font-size:14px;padding:4px 0}
summary h3{display:inline;font-size:14px}
code,td,th,dd,option{unicode-bidi:isolate}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{background:var(--code);border-radius:4px;padding:1px 5px;font-size:.9em;overflow-wrap:anywhere}
pre code{background:none;padding:0;font-size:1em;overflow-wrap:normal}
pre{background:var(--code);border-radius:8px;padding:14px 16px;overflow-x:auto;font-size:13px;
 line-height:1.5;margin:8px 0 14px}
.prompt{white-space:pre-wrap;overflow-wrap:anywhere;max-height:10.85em;overflow-y:auto;
 font-size:14px;border-left:3px solid var(--line);padding:0 0 0 14px;margin:0 0 10px}
.prompt::before{content:attr(aria-label);display:block;color:var(--soft);font-size:13px;
 line-height:1.67}
.scale{display:flex;flex-wrap:wrap;gap:4px;font-size:13px;margin:0 0 12px;padding:0;list-style:none}
.scale li{padding:2px 9px;border-radius:4px}
.controls{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;font-size:14px;
 margin-bottom:12px}
select{font:inherit;color:var(--text);background:var(--card);border:1px solid var(--soft);
 border-radius:6px;padding:4px 8px;max-width:100%}
.sample{border-top:1px solid var(--line);padding-top:16px;margin-top:18px}
.sample h3{margin:0 0 2px}
.tokens{line-height:1.9;font-size:13px}
.tokens button,.tokens span{display:inline-block;font:inherit;line-height:1.45;border:0;margin:1px;
 padding:1px 5px;
 border-radius:4px;background:none;color:var(--soft);white-space:pre;unicode-bidi:isolate;
 max-width:100%;overflow:hidden;
 text-overflow:ellipsis;vertical-align:middle}
.tokens button{cursor:pointer}
.readout{font-size:14px;min-height:3.2em;max-width:none;margin:0 0 8px;padding:8px 12px;
 border-radius:8px;background:var(--code);position:sticky;top:6px;
 font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.tokens button:hover{outline:1px solid var(--text)}
footer{padding-top:6px;padding-bottom:40px;color:var(--soft);font-size:13px}
@media (max-width:640px){
 main,header,footer{padding-left:14px;padding-right:14px}
 header{padding-top:22px}
 section{padding:16px 14px}
 h1{font-size:23px}
 .wide tbody th{white-space:normal;max-width:40vw;overflow-wrap:break-word}
 .wide wbr{display:inline}
 .facts{grid-template-columns:1fr 1fr}
 .facts dd{font-size:18px}
}
@media print{
 body{font-size:11pt;background:none}
 *{-webkit-print-color-adjust:exact;print-color-adjust:exact}
 section{border:0;padding:0;margin:18pt 0}
 figure,tr,.message,.sample{break-inside:avoid}
 h2,h3{break-after:avoid}
 nav,.controls,.readout{display:none}
 .columns{grid-template-columns:1fr 1fr}
 .facts-columns{columns:2}
 .wide{overflow:visible;background:none}
 .wide table{font-size:8pt;width:100%}
 .wide tbody th{white-space:normal;overflow-wrap:anywhere}
 td.n,th.n,td.list,th.list{padding-left:6pt;min-width:0}
 .prompt{max-height:none}
 pre{white-space:pre-wrap}
}
"""
    + "".join(
        f".tokens .c{n},.scale .c{n}{{background:var(--b{n});color:var(--f{n})}}"
        for n in range(len(LIGHT_TOKENS))
    )
    + "".join(f".s{n} path{{stroke:var(--series-{n})}}" for n in range(SERIES_COLOURS))
    + ".d1 path{stroke-dasharray:6 3}.d2 path{stroke-dasharray:2 3}"
    ".tokens .c6,.tokens .cx{font-weight:700}"
    ".tokens .cx,.scale .cx{background:var(--text);color:var(--card)}"
)
