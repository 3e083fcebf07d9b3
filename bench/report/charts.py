"""What is drawn of which benchmark, and how: bars or lines over rows of its file.

A chart is a few words of data here, so that a new benchmark gets one by a line. Nothing is drawn
where the file lacks what the chart asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report.chart_list import CHARTS, Chart
from bench.report.reading import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 60
_WIDTH_IN, _HEIGHT_IN = 9.5, 3.4


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one line or one colour of bars; a bar without a value is NaN."""

    label: str
    xs: tuple[str | float, ...]
    ys: tuple[float, ...]


def charts_of(result: Result) -> list[tuple[Chart, list[Series]]]:
    """Charts that this result has data for."""
    found = []
    for chart in CHARTS:
        if result.kind == chart.kind or result.kind.startswith(chart.kind + " "):
            series = series_of(chart, result.figures)
            if any(any(math.isfinite(y) for y in s.ys) for s in series):
                found.append((chart, series))
    return found


def series_of(chart: Chart, figures: Mapping[str, object]) -> list[Series]:
    rows = _rows(chart, figures)
    if not chart.group:
        return [_series(y, rows, chart.x, y) for y in chart.ys]
    series = []
    for value in dict.fromkeys(str(_at(row, chart.group)) for row in rows):
        own = [row for row in rows if str(_at(row, chart.group)) == value]
        for y in chart.ys:
            label = value if len(chart.ys) == 1 else f"{value}, {y}"
            series.append(_series(label, own, chart.x, y))
    return series


def draw(chart: Chart, series: Sequence[Series]) -> bytes:
    """The chart as SVG."""
    from bench.simulator.plots_file import as_svg, blank, style

    figure = blank(_WIDTH_IN, _HEIGHT_IN)
    axes = figure.add_subplot()
    if chart.bars:
        _bars(axes, series)
    else:
        _lines(axes, series)
    style(axes, chart.title, chart.xlabel, chart.ylabel)
    if chart.log_x and not chart.bars:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    return as_svg(figure)


def _bars(axes: Axes, series: Sequence[Series]) -> None:
    from bench.simulator.plots_file import COLOURS

    labels = list(dict.fromkeys(str(x) for s in series for x in s.xs))[:MOST_BARS]
    width = 0.8 / len(series)
    for number, one in enumerate(series):
        values = dict(zip((str(x) for x in one.xs), one.ys, strict=True))
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(labels))]
        heights = [values.get(label, math.nan) for label in labels]
        colour = COLOURS[number % len(COLOURS)]
        axes.bar(places, heights, width * 0.95, color=colour, label=one.label)
    turned = sum(len(label) for label in labels) > 90
    axes.set_xticks(range(len(labels)), labels, rotation=35 if turned else 0, fontsize=8)
    if turned:
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")


def _lines(axes: Axes, series: Sequence[Series]) -> None:
    from bench.simulator.plots_file import COLOURS, DASHES

    for number, one in enumerate(series):
        points = [
            (float(x), y)
            for x, y in zip(one.xs, one.ys, strict=True)
            if not isinstance(x, str) and math.isfinite(y)
        ]
        points.sort()
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            marker="o",
            markersize=3,
            linewidth=1.3,
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            label=one.label,
        )


def _rows(chart: Chart, figures: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The chart's rows, those that it is about: a list of groups; or a group of groups, whose names
    become `name`; or one group with figures, as a row of each."""
    found: object = _at(figures, chart.rows) if chart.rows else figures
    if isinstance(found, list):
        rows = [row for row in found if isinstance(row, dict)]
        return [r for r in rows if all(str(_at(r, name)) == value for name, value in chart.only)]
    if isinstance(found, dict) and chart.members:
        return [
            {"name": label, **{y: found.get(y + ending) for y in chart.ys}}
            for label, ending in chart.members
        ]
    if isinstance(found, dict) and chart.x == "name":
        return [{"name": k, **v} for k, v in found.items() if isinstance(v, dict)]
    return []


def _series(label: str, rows: Sequence[Mapping[str, object]], x: str, y: str) -> Series:
    xs: list[str | float] = []
    ys: list[float] = []
    for row in rows:
        at, value = _at(row, x), _at(row, y)
        if at is None:
            continue
        xs.append(float(at) if isinstance(at, int | float) else str(at))
        ys.append(float(value) if isinstance(value, int | float) else math.nan)
    return Series(label, tuple(xs), tuple(ys))


def _at(row: Mapping[str, object], path: str) -> object:
    """The value under `a.b`; also where a key has dots itself. Several paths joined by `+`: their
    values in words."""
    if "+" in path:
        return " ".join(str(_at(row, part)) for part in path.split("+"))
    if path in row:
        return row[path]
    value: object = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
