"""A comparison as one figure: a row per case with its rates and latencies, then latency curves.

What is drawn is in the cases' reports; cases that failed are left to the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.simulator.compare import Comparison
from bench.simulator.compare_text import busy
from bench.simulator.plots import LATENCIES, draw_cdfs, label_seconds
from bench.simulator.plots_file import COLOURS, new_figure, save, style
from bench.simulator.stats import Report
from bench.simulator.stats_spread import Spread
from helix_mq.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CURVES = 12
"""More lines in one panel cannot be told apart."""
MAX_ROWS = 200
_WIDTH_IN = 14.0
_Row = tuple[str, Report]


def plot_comparison(comparison: Comparison, path: Path, title: str = "") -> None:
    """Draws to an .svg or .png file the cases that did not fail.

    ConfigError if there is none or more than MAX_ROWS, or the file cannot be made.
    """
    every = [outcome.case for outcome in comparison.outcomes]
    rows = [(o.case.label(every), o.report) for o in comparison.outcomes if o.report is not None]
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ConfigError(
            f"plot={path}: {len(rows)} cases to draw; it takes 1 to {MAX_ROWS}", param="plot"
        )
    curves = len(rows) <= MAX_CURVES
    rows_in = 1.0 + 0.3 * len(rows)
    curves_in = 2.8 if curves else 0.0
    figure = new_figure(path, _WIDTH_IN, rows_in + curves_in + 0.9)
    heights = (rows_in, curves_in) if curves else (rows_in,)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    _draw_rows(figure, grid[0].subgridspec(1, 4, width_ratios=(1.5, 1, 1, 1)), rows)
    if curves:
        below = grid[1].subgridspec(1, len(LATENCIES))
        for column, (name, label) in enumerate(LATENCIES):
            axes = figure.add_subplot(below[0, column])
            draw_cdfs(axes, label, {case: getattr(report, name) for case, report in rows})
            if column == 0:
                axes.set_ylabel("share of all", fontsize=9)
    figure.suptitle(title or f"{len(rows)} cases", fontsize=12, x=0.01, ha="left")
    save(figure, path)


def _draw_rows(figure: Figure, grid: object, rows: Sequence[_Row]) -> None:
    first = figure.add_subplot(grid[0, 0])  # type: ignore[index]
    others = [figure.add_subplot(grid[0, i], sharey=first) for i in (1, 2, 3)]  # type: ignore[index]
    rates = [report.decode_tokens_per_s for _, report in rows]
    _bars(first, "decode tokens/s", rates, [f"{rate:.1f}" for rate in rates])
    first.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    first.set_ylim(len(rows) - 0.4, -0.6)
    _ranges(others[0], "time to first token", [report.ttft for _, report in rows])
    _ranges(others[1], "time per output token", [report.tpot for _, report in rows])
    shares = [busy(report) for _, report in rows]
    _bars(others[2], "nodes computing", shares, [f"{share:.0%}" for share in shares])
    others[2].set_xlim(0, 1.18)
    others[2].set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
    for axes in others:
        axes.tick_params(axis="y", labelleft=False, length=0)


def _bars(axes: Axes, title: str, values: Sequence[float], labels: Sequence[str]) -> None:
    style(axes, title)
    axes.grid(axis="y", visible=False)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(values))]
    bars = axes.barh(range(len(values)), values, height=0.62, color=colours, edgecolor="white")
    for bar in bars[len(COLOURS) :]:
        # The colours begin again; so do the curves', with dashes.
        bar.set_hatch("//")
    for y, (value, label) in enumerate(zip(values, labels, strict=True)):
        axes.text(value, y, f" {label}", va="center", ha="left", fontsize=8)
    axes.set_xlim(0, max(values, default=0) * 1.18 or 1)


def _ranges(axes: Axes, title: str, spreads: Sequence[Spread]) -> None:
    """A line from p5 to p95, a dot at the median, a tick at p99."""
    style(axes, title, "line p5 to p95, dot p50, tick p99")
    axes.grid(axis="y", visible=False)
    for y, spread in enumerate(spreads):
        if spread.count:
            colour = COLOURS[y % len(COLOURS)]
            low, middle, high, last = (
                max(v, 1e-7) for v in (spread.p5, spread.p50, spread.p95, spread.p99)
            )
            axes.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot([middle], [y], "o", color=colour, markersize=7, markeredgecolor="white")
            axes.plot([last], [y], "|", color=colour, markersize=9)
    if any(spread.count for spread in spreads):
        label_seconds(axes)
