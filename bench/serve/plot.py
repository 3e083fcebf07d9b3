"""A run as a figure: latency curves, output tokens and requests under way by the second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.serve.report import ServeReport
from bench.simulator.plots import draw_cdfs
from bench.simulator.plots_file import COLOURS, new_figure, save, style
from bench.simulator.stats_spread import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN, _HEIGHT_IN = 13.0, 7.0
_LATENCIES = (
    ("ttft", "time to first token"),
    ("tpot", "time per output token"),
    ("itl", "inter-token latency"),
    ("e2el", "end to end"),
)


def plot_serve(report: ServeReport, path: Path, title: str) -> None:
    """Draws to an .svg or .png file. ConfigError as bench.simulator.plots_file."""
    figure = new_figure(path, _WIDTH_IN, _HEIGHT_IN)
    grid = figure.add_gridspec(3, len(_LATENCIES), height_ratios=(2.6, 1.7, 1.7))
    for column, (name, label) in enumerate(_LATENCIES):
        axes = figure.add_subplot(grid[0, column])
        spread: Spread = getattr(report.latencies, name)
        draw_cdfs(axes, label, {"": spread}, marks=True)
        if name == "itl" and spread.p5 > 0:
            # Two events in one read are no time apart; a decade of nothing shows nothing.
            axes.set_xlim(left=spread.p5 / 2)
    first = figure.add_subplot(grid[1, :])
    _by_second(first, report.tokens_by_s, "output tokens/s", COLOURS[0])
    second = figure.add_subplot(grid[2, :], sharex=first)
    _by_second(second, report.running_by_s, "requests under way", COLOURS[2])
    second.set_xlabel("seconds", fontsize=9)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    save(figure, path)


def _by_second(axes: Axes, values: Sequence[float], label: str, colour: str) -> None:
    if values:
        edges = [float(i) for i in range(len(values) + 1)]
        axes.stairs(list(values), edges, baseline=None, color=colour, linewidth=1.3)
    style(axes, label)
    axes.set_ylim(bottom=0)
