"""The style sheet of pages and of pictures on their own: light, dark, narrow, wide and printed."""

LIGHT = """--page: #f9f9f7; --card: #ffffff; --ink: #0b0b0b; --soft: #52514e; --faint: #dddcd6;
  --good: #0a7a3d; --bad: #b3261e; --open: #8a5a00; --band: #dcebe2; --edge: #00000029; --link: #1d5fb8;
  --c0: #2a78d6; --c1: #d9541e; --c2: #12805a; --c3: #7a4fc9; --c4: #9a6f00; --c5: #c23b80;"""

DARK = """--page: #161615; --card: #20201e; --ink: #f4f4f2; --soft: #b5b4ae;
  --faint: #3b3b38; --good: #57c98a; --bad: #ff8a80; --open: #f0b95a; --band: #27382e; --edge: #000000b0;
  --link: #8abaf5;
  --c0: #6aa8f0; --c1: #f08a5d; --c2: #4cc394; --c3: #b39af0; --c4: #e0b84a; --c5: #ee84b6;"""

DRAWN = """
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .tick, svg .axis { fill: var(--soft); } .grid { stroke: var(--faint); } .zero { stroke: var(--soft); }
.leader { stroke: var(--faint); } .line { fill: none; stroke-width: 2; }
.dot { stroke: var(--card); stroke-width: 1.5; } .dot.hidden { opacity: 0; }
.around { opacity: .18; } .around, .cell { stroke: none; } .cell { fill: var(--c0); }
.cell.none { fill: none; stroke: var(--faint); } .cell.below { fill: var(--c1); } svg .number { font-size: 13px; }
.joined { fill: none; stroke: var(--c1); stroke-width: 2; }
.dot.plain { fill: var(--soft); opacity: .55; } .dot.front { fill: var(--c1); } .dot.corner { fill: var(--c0); }
.band { fill: var(--band); } .interval { stroke-width: 2; } .interval.inside { stroke: var(--c0); }
.interval.outside { stroke: var(--bad); } .mark.inside { fill: var(--c0); } .mark.outside { fill: var(--bad); }
.moved { stroke: var(--soft); opacity: .45; } .dot.text { fill: var(--soft); opacity: .7; stroke: none; }
.dot.before { fill: var(--card); stroke: var(--c0); stroke-width: 2; } .dot.after { fill: var(--c1); }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.c4 { fill: var(--c4); } .c5 { fill: var(--c5); } .line { fill: none !important; }
"""

COLOURS = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
@media print {{ :root {{ color-scheme: light; {LIGHT} --page: #ffffff; }} }}
"""

TEXT = """
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; scroll-margin-top: 1rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; } .lead { color: var(--soft); margin: 0; }
a { color: var(--link); } a:focus-visible, summary:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
.contents { margin: 1.25rem 0 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; }
.card { background: var(--card); border: 1px solid var(--faint); border-radius: 10px;
  padding: 1rem 1.25rem; margin: 0 0 1rem; }
.banner { border-left: 6px solid var(--soft); } .banner p { margin: .25rem 0 0; color: var(--soft); }
.banner.good { border-left-color: var(--good); } .banner.bad { border-left-color: var(--bad); }
.banner.open { border-left-color: var(--open); } .mark-good { color: var(--good); } .mark-bad { color: var(--bad); }
.mark-open { color: var(--open); } .headline { font-weight: 650; font-size: 1.1rem; }
.banner .move { color: var(--ink); margin-top: .5rem; }
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--card) 1rem, transparent 2.5rem) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--card) 1rem, transparent 2.5rem) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--edge), transparent) left / .9rem 100% no-repeat,
  linear-gradient(to left, var(--edge), transparent) right / .9rem 100% no-repeat; }
.scroll:focus-visible { outline: 2px solid var(--c0); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--faint); vertical-align: top; }
th.left, td.left, th:first-child, td:first-child { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; } tbody th { font-weight: 500; min-width: 4.5rem; }
table.words td, table.words th { text-align: left; } table.words td, table.words th { min-width: 9rem; }
.detail { color: var(--soft); font-size: .86em; white-space: nowrap; }
.strong { font-weight: 700; } code { font-size: .92em; }
.bar { height: 4px; border-radius: 2px; background: var(--faint); margin-top: .25rem; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--c0); }
.note { color: var(--soft); font-size: .85rem; margin: .5rem 0 0; }
.terms { color: var(--soft); font-size: .85rem; margin: .5rem 0 0; } .terms dl { margin: .25rem 0 0; }
.terms dt { font-weight: 600; color: var(--ink); } .terms dd { margin: 0 0 .35rem; }
summary { cursor: pointer; } pre { overflow-x: auto; font-size: .8rem; }
.drawn { max-width: 42rem; } .drawn.narrow { display: none; }
@media (max-width: 40rem) {
  main { padding: 1.25rem .75rem 3rem; } .card { padding: .85rem .85rem; }
  .drawn svg { min-width: 29rem; } .drawn svg.small { min-width: 0; }
  .drawn.wide { display: none; } .drawn.narrow { display: block; }
  table { font-size: .875rem; } th, td { padding: .4rem .35rem; }
}
@media print {
  body { font-size: 10pt; } main { max-width: none; padding: 0; } .contents a { color: inherit; text-decoration: none; }
  h2 { margin-top: 1.25rem; } h2, h3 { break-after: avoid; }
  .card { break-inside: avoid; border-color: #bbbbbb; padding: .6rem .9rem; margin-bottom: .6rem; }
  table { font-size: 8.5pt; } thead { display: table-header-group; } tr { break-inside: avoid; }
  th, td { padding: .2rem .35rem; } th { overflow-wrap: anywhere; } .detail { white-space: normal; }
  .drawn { max-width: 30rem; } .note, .terms { font-size: 8.5pt; }
  .scroll, pre { overflow: visible; background: none; } pre { white-space: pre-wrap; } .drawn svg { min-width: 0; }
  details:not(.many)::details-content { content-visibility: visible; height: auto; }
  .bar, .bar i, .banner { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

PAGE = COLOURS + TEXT + DRAWN
PICTURE = COLOURS + DRAWN
"""Of a picture in a file of its own."""
