"""One self-contained HTML page: sections, each a heading and a body made elsewhere; nothing is loaded from anywhere.

A further section is a function that returns a `Section`, and its name in `SECTIONS` of `report/run_page.py`.
"""

from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1c1f24; --soft: #667; --line: #d9d9d4; --edge: #fff;
  --t0: #a9c7ea; --t1: #f2c39b; --t2: #b5d8b0; --t3: #d9bfe6; --t4: #e6dc9a; --t5: #c9ced6;
  --i0: #0072b2; --i1: #d55e00; --i2: #009e73; --i3: #a8518a; --i4: #9c7a00; --i5: #56657a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e9eaec; --soft: #9aa0aa; --line: #33363d; --edge: #16181c;
    --t0: #2f5278; --t1: #7a4d26; --t2: #35603a; --t3: #5d4170; --t4: #625a20; --t5: #464b54;
    --i0: #6ab3ea; --i1: #f0935a; --i2: #4fc7a0; --i3: #d79ac6; --i4: #d8bd50; --i5: #aab4c4; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.note { color: var(--soft); }
section { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; }
svg rect { stroke: var(--edge); stroke-width: 1; } svg rect.frame { opacity: .55; }
svg text { fill: var(--ink); font: 11px ui-monospace, monospace; pointer-events: none; }
svg text.head { font-weight: 600; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
nav a { margin-right: 1rem; } a { color: var(--i0); }
svg path.grid { stroke: var(--line); fill: none; } svg path.line { fill: none; stroke-width: 1.6; }
svg text.tick, svg text.axis { fill: var(--soft); font: 11px system-ui, sans-serif; }
p.legend span { margin-right: 1.2rem; } i.swatch { display: inline-block; width: 1.2rem; height: .25rem;
  margin-right: .4rem; vertical-align: middle; background: currentColor; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); font: 12px/1.5 ui-monospace, monospace; }
td { overflow-wrap: break-word; } details summary { cursor: pointer; }
""" + "".join(
    f".tone{tone} {{ fill: var(--t{tone}); }}\npath.ink{tone} {{ stroke: var(--i{tone}); }} "
    f"circle.ink{tone} {{ fill: var(--i{tone}); }} i.ink{tone} {{ color: var(--i{tone}); }}\n"
    for tone in range(6)
)


@dataclass(frozen=True)
class Section:
    """A part of the page; `body` is HTML."""

    title: str
    body: str


def html_table(columns: list[str], rows: list[list[str | int | float]]) -> str:
    """A table; numbers stand to the right."""

    def cells(tag: str, row: list[str | int | float], like: list[str | int | float]) -> str:
        return "".join(
            f'<{tag} class="number">{shown(value)}</{tag}>'
            if isinstance(kind, int | float)
            else f"<{tag}>{shown(value)}</{tag}>"
            for value, kind in zip(row, like, strict=True)
        )

    lines = [cells("th", list(columns), rows[0]), *(cells("td", row, row) for row in rows)] if rows else []
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def shown(value: str | int | float) -> str:
    """A cell's text."""
    return escape(f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value)


def page(title: str, sections: list[Section]) -> str:
    """The document."""
    body = "".join(
        f'<section id="part{number}"><h2>{escape(part.title)}</h2>{part.body}</section>\n'
        for number, part in enumerate(sections)
    )
    links = "".join(f'<a href="#part{number}">{escape(part.title)}</a>' for number, part in enumerate(sections))
    body = (f"<nav>{links}</nav>\n" if len(sections) > 1 else "") + body
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    name = escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{name}</title><style>{STYLE}</style></head>\n'
        f"<body><h1>{name}</h1>\n{body}</body></html>\n"
    )
