"""The page of results: any figures become tables, known ones are drawn, nothing escapes."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.report.chart_list import CHARTS
from bench.report.charts import charts_of, series_of
from bench.report.page import page
from bench.report.reading import Result, files_of, read
from bench.report.tables import MAX_ROWS, tables_of, text_of
from helix_mq.cli import build_app
from helix_mq.errors import ConfigError

RESULTS = Path(__file__).parents[3] / "bench" / "results"

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
figures = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    ),
    max_size=6,
)


class Balanced(HTMLParser):
    """Fails on an end that does not fit, and on any tag that the page does not make itself."""

    VOID = ("meta", "img")
    OWN = (
        *VOID,
        *("html", "head", "title", "style", "body", "h1", "h2", "h3", "p", "code", "div", "table"),
        *("tr", "th", "td", "a", "details", "summary"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.OWN
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_html(text: str) -> None:
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []


@given(figures)
def test_figures_of_any_form_become_tables_and_a_whole_page(body: dict[str, object]) -> None:
    for table in tables_of(body):
        assert all(len(row) == len(table.columns) for row in table.rows)
    result = Result("n<b>", "k", "c & <i>", "d", "m", "v", body)
    check_html(page([result], title="<script>", plots=False))


def test_every_result_that_is_kept_is_on_the_page() -> None:
    results = [read(path) for path in files_of([RESULTS])]
    assert len(results) == len(list(RESULTS.glob("*.json")))
    text = page(results, title="all", plots=False)
    check_html(text)
    assert all(f">{r.name}</h2>" in text for r in results)
    assert all(tables_of(r.figures) for r in results)


def test_every_chart_has_a_result_that_it_is_drawn_of(tmp_path: Path) -> None:
    """A chart whose names no file has any more would be missing without a word."""
    serve = tmp_path / "serve.json"
    serve.write_text(
        json.dumps(
            {
                "request_throughput": 1.0,
                "output_throughput": 9.0,
                **{f"{s}_{n}_ms": 5.0 for s in ("mean", "p50", "p90") for n in ("ttft", "e2el")},
                "helix_mq": {"command": "helix-mq bench serve", "machine": {"cores": 2}},
            }
        )
    )
    results = [read(path) for path in files_of([RESULTS, serve])]
    drawn = {chart.title for result in results for chart, _ in charts_of(result)}
    assert {chart.title for chart in CHARTS} == drawn


def test_a_chart_takes_its_points_from_the_rows() -> None:
    chart = next(c for c in CHARTS if c.title == "time to plan")
    rows = [
        {"method": "a", "regions": 1, "nodes": 10, "plan_s": 0.5},
        {"method": "a", "regions": 4, "nodes": 10, "plan_s": 0.7},
        {"method": "a", "regions": 1, "nodes": 20, "plan_s": 1.5},
        {"method": "a", "regions": 1, "plan_s": 9.0},
    ]
    one, four = series_of(chart, {"points": rows})
    assert (one.label, one.xs, one.ys) == ("a 1", (10.0, 20.0), (0.5, 1.5))
    assert (four.label, four.xs, four.ys) == ("a 4", (10.0,), (0.7,))


def test_a_chart_takes_the_rows_that_it_is_about() -> None:
    chart = next(c for c in CHARTS if c.title.startswith("round trips over tcp"))
    plain = {"system": "plane", "transport": "tcp", "curve": False, "hops": 1, "size_bytes": 64}
    rows = [
        {**plain, "trip_p50_us": 1.0},
        {**plain, "trip_p50_us": 2.0, "curve": True},
        {**plain, "trip_p50_us": 3.0, "hops": 3},
        {**plain, "trip_p50_us": 4.0, "transport": "ipc"},
    ]
    (one,) = series_of(chart, {"rows": rows})
    assert (one.label, one.xs, one.ys) == ("plane", (64.0,), (1.0,))


def test_long_tables_say_what_they_leave_out() -> None:
    (table,) = tables_of({"rows": [{"a": i} for i in range(MAX_ROWS + 3)]})
    assert len(table.rows) == MAX_ROWS
    assert table.left_out == "3 more rows are in the file"


def test_cells_are_for_people() -> None:
    cells = (None, True, 7, 12_345, 0.1234567, 54_321.9, 1e-7, float("nan"), "x")
    shown = [text_of(cell) for cell in cells]
    assert shown == ["", "yes", "7", "12,345", "0.1235", "54,322", "1e-07", "nan", "x"]


def test_the_command_writes_one_page_with_plots(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    bad = tmp_path / "bad.json"
    bad.write_text("[1]")
    found = CliRunner().invoke(
        build_app(),
        ["bench", "report", str(RESULTS / "planner-targets.json"), str(bad), "--out", str(out)],
    )
    assert found.exit_code == 0, found.output
    assert "left out" in found.output
    assert "bad.json" in found.output
    text = out.read_text("utf-8")
    check_html(text)
    (picture,) = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)
    assert b"max flow: published, ours, bound" in base64.b64decode(picture)


@pytest.mark.parametrize("content", ["", "[]", "{}", "[1", '"a"', "[" * 100_000])
def test_what_is_no_result_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read(path)


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        files_of([tmp_path / "none"])
    with pytest.raises(ConfigError, match="no result files"):
        files_of([tmp_path])
