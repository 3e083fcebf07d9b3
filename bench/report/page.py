"""One HTML page of many results: no script, nothing from elsewhere, readable in any browser.

Plots are pictures of their own within it (data URLs), so that no id of one meets another's.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape

from bench.report.charts import charts_of, draw
from bench.report.reading import Result
from bench.report.tables import Table, tables_of, text_of

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h2 { border-top: 1px solid #8886; margin-top: 2.5rem; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid #8884; padding: .15rem .6rem; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { background: #fff; display: block; height: auto; margin: .6rem 0; max-width: 100%; }
details > summary { cursor: pointer; margin: .6rem 0; }
.quiet { color: #777; }
"""
_OPEN_ROWS = 40
"""Tables up to this long are shown at once, longer ones on a click."""


def page(
    results: Sequence[Result], *, title: str, plots: bool, done: Callable[[str], None] | None = None
) -> str:
    """The whole page. `done` is told the name of each result as it is ready."""
    sections = []
    for number, result in enumerate(results):
        sections.append(_section(number, result, plots))
        if done is not None:
            done(result.name)
    head = f"<meta charset=utf-8><title>{escape(title)}</title>"
    head += '<meta name=viewport content="width=device-width"><style>' + _STYLE + "</style>"
    without = "" if plots else "<p>Without plots: they need matplotlib (the extra [plot]).</p>"
    return (
        f"<!doctype html><html lang=en><head>{head}</head><body><h1>{escape(title)}</h1>"
        f"{without}{_contents(results)}{''.join(sections)}</body></html>\n"
    )


def _contents(results: Sequence[Result]) -> str:
    rows = "".join(
        f'<tr><td><a href="#r{i}">{escape(r.name)}</a></td><td>{escape(r.kind)}</td>'
        f"<td>{escape(r.date)}</td><td>{escape(r.machine)}</td></tr>"
        for i, r in enumerate(results)
    )
    head = "<tr><th>result</th><th>benchmark</th><th>date</th><th>machine</th></tr>"
    return f"<div class=wide><table>{head}{rows}</table></div>"


def _section(number: int, result: Result, plots: bool) -> str:
    parts = [f'<h2 id="r{number}">{escape(result.name)}</h2>']
    if result.command:
        parts.append(f"<p><code>{escape(result.command)}</code></p>")
    about = " · ".join(part for part in (result.date, result.machine, result.versions) if part)
    if about:
        parts.append(f"<p class=quiet>{escape(about)}</p>")
    for chart, series in charts_of(result) if plots else ():
        picture = base64.b64encode(draw(chart, series)).decode("ascii")
        alt = escape(f"{chart.title}, {chart.ylabel}", quote=True)
        parts.append(f'<img alt="{alt}" src="data:image/svg+xml;base64,{picture}">')
    parts += [_table(table) for table in tables_of(result.figures)]
    return "\n".join(parts)


def _table(table: Table) -> str:
    # A column of numbers is set to the right; the first one names the row.
    numbers = [
        at > 0 and all(_is_number(row[at]) for row in table.rows)
        for at in range(len(table.columns))
    ]
    marks = [" class=number" if number else "" for number in numbers]
    head = "".join(f"<th{m}>{escape(c)}</th>" for m, c in zip(marks, table.columns, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{m}>{escape(text_of(cell))}</td>" for m, cell in zip(marks, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    left = f"<p class=quiet>{escape(table.left_out)}</p>" if table.left_out else ""
    grid = f"<div class=wide><table><tr>{head}</tr>{body}</table></div>{left}"
    if len(table.rows) <= _OPEN_ROWS:
        return f"<h3>{escape(table.title)}</h3>{grid}"
    summary = f"{escape(table.title)}, {len(table.rows)} rows"
    return f"<details><summary>{summary}</summary>{grid}</details>"


def _is_number(cell: object) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
