"""A comparison as a figure: throughput, latencies and use of nodes, live beside simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cluster.result import Pair
from bench.simulator.plots_file import COLOURS, new_figure, save, style
from bench.simulator.stats import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN, _HEIGHT_IN = 13.0, 6.4
_SIDES = ("live", "simulated")


def plot_pairs(pairs: Sequence[Pair], path: Path, title: str) -> None:
    """Draws to an .svg or .png file. ConfigError as bench.simulator.plots_file."""
    figure = new_figure(path, _WIDTH_IN, _HEIGHT_IN)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.2, 1))
    sides = [[p.live.report for p in pairs], [p.simulated for p in pairs]]
    labels = [p.scheduler for p in pairs]
    panels = (
        ("decode tokens/s", [[r.decode_tokens_per_s for r in side] for side in sides]),
        ("time to first token, mean, s", [[r.ttft.mean for r in side] for side in sides]),
        ("time per output token, mean, s", [[r.tpot.mean for r in side] for side in sides]),
    )
    for column, (name, values) in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        _bars(axes, name, labels, values)
        if column == 0:
            axes.legend(fontsize=8, frameon=False, loc="lower right")
    names = sorted({n.node for p in pairs for n in p.simulated.nodes})
    use = figure.add_subplot(grid[1, :])
    ticks = [f"{p.scheduler}\n{n}" for p in pairs for n in names]
    values = [[u for r in side for u in _use(r, names)] for side in sides]
    _bars(use, "share of time computing", ticks, values)
    use.set_ylim(0, 1.05)
    use.tick_params(axis="x", labelsize=6)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    save(figure, path)


def _use(report: Report, names: Sequence[str]) -> list[float]:
    use = {n.node: n.utilisation for n in report.nodes}
    return [use.get(name, 0.0) for name in names]


def _bars(axes: Axes, title: str, labels: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    style(axes, title)
    axes.grid(axis="x", visible=False)
    for i, (side, heights) in enumerate(zip(_SIDES, values, strict=True)):
        at = [x + (i - 0.5) * 0.38 for x in range(len(labels))]
        axes.bar(at, heights, width=0.36, color=COLOURS[i], label=side)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
