"""One run as a figure: latency curves, throughput, requests and KV over time, and a heat map.

The heat map has a row per node and shows the share of time it computed: idle stages and convoys
are seen at once. Everything drawn is in the Report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.simulator.plots_file import COLOURS, DASHES, new_figure, save, style
from bench.simulator.stats import Report
from bench.simulator.stats_spread import CURVE_POINTS, Spread
from bench.simulator.stats_text import seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELLED_NODES = 80
_WIDTH_IN = 13.0
_ROW_IN = 0.17
LATENCIES = (
    ("ttft", "time to first token"),
    ("tpot", "time per output token"),
    ("itl", "inter-token latency"),
    ("e2e", "end to end"),
)


def plot_report(
    report: Report, path: Path, title: str = "", order: Sequence[str] | None = None
) -> None:
    """Draws a run to an .svg or .png file. `order`: nodes from top to bottom, by default by name.

    ConfigError if the suffix is another, matplotlib is missing, or the file cannot be written.
    """
    nodes = _rows(report, order)
    map_in = max(1.2, min(14.0, _ROW_IN * len(nodes)) + 0.6)
    figure = new_figure(path, _WIDTH_IN, 2.6 + 3 * 1.7 + map_in + 0.6)
    heights = (2.6, 1.7, 1.7, 1.7, map_in)
    grid = figure.add_gridspec(5, len(LATENCIES), height_ratios=heights)
    for column, (name, label) in enumerate(LATENCIES):
        axes = figure.add_subplot(grid[0, column])
        draw_cdfs(axes, label, {"": getattr(report, name)}, marks=True)
        if column == 0:
            axes.set_ylabel("share of all", fontsize=9)
    first = figure.add_subplot(grid[1, :])
    _draw_throughput(first, report)
    _draw_requests(figure.add_subplot(grid[2, :], sharex=first), report)
    _draw_kv(figure.add_subplot(grid[3, :], sharex=first), report)
    _draw_heat(figure, figure.add_subplot(grid[4, :], sharex=first), report, nodes)
    figure.suptitle(title or _title(report), fontsize=12, x=0.01, ha="left")
    save(figure, path)


def draw_cdfs(
    axes: Axes, label: str, spreads: Mapping[str, Spread], *, marks: bool = False
) -> None:
    """Cumulative curves on a logarithmic time axis; `marks`: dots at the median, p95 and p99."""
    shares = [i / (CURVE_POINTS - 1) for i in range(CURVE_POINTS)]
    for index, (name, spread) in enumerate(spreads.items()):
        if not spread.count:
            continue
        colour = COLOURS[index % len(COLOURS)]
        dash = DASHES[index // len(COLOURS) % len(DASHES)]
        # A logarithmic axis has no zero.
        curve = [max(value, 1e-7) for value in spread.curve]
        axes.plot(curve, shares, color=colour, linestyle=dash, linewidth=1.6, label=name)
        if marks:
            _mark(axes, spread, colour)
    style(axes, label)
    axes.set_ylim(0, 1.02)
    if any(spread.count for spread in spreads.values()):
        label_seconds(axes)
    else:
        _empty(axes, "none in the window")


def label_seconds(axes: Axes) -> None:
    """Few labels, each with its unit: 200 ms, 1 s, 20 s. Logarithmic unless the span is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_xlim()
    if low > 0 and high / low < 3:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    else:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(10, subs=subs))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(float(f"{value:.3g}"))))


def _mark(axes: Axes, spread: Spread, colour: str) -> None:
    named = (("p50", spread.p50, 0.5), ("p95", spread.p95, 0.95), ("p99", spread.p99, 0.99))
    for _, value, share in named:
        axes.plot([max(value, 1e-7)], [share], "o", color=colour, markersize=4)
    # The corner under a cumulative curve is always free.
    text = "\n".join(f"{name}  {seconds(value)}" for name, value, _ in named)
    axes.text(0.98, 0.04, text, ha="right", va="bottom", transform=axes.transAxes, fontsize=8)


def _rows(report: Report, order: Sequence[str] | None) -> list[str]:
    known = sorted((node.node for node in report.nodes), key=_natural)
    first = [name for name in order or () if name in known]
    return first + [name for name in known if name not in set(first)]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts n2 before n10."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+|[0-9]+", name)
    return [(0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in parts]


def _title(report: Report) -> str:
    return (
        f"decode {report.decode_tokens_per_s:.1f} tokens/s, "
        f"total {report.total_tokens_per_s:.1f} tokens/s, {report.finished} requests finished"
    )


def _stairs(axes: Axes, report: Report, values: Sequence[float], label: str, colour: str) -> None:
    timeline = report.timeline
    edges = [timeline.start_s + i * timeline.bin_s for i in range(len(values) + 1)]
    if timeline.bin_s > 0:
        axes.stairs(values, edges, baseline=None, color=colour, linewidth=1.3, label=label)


def _draw_throughput(axes: Axes, report: Report) -> None:
    _stairs(axes, report, report.timeline.output_tokens_per_s, "output", COLOURS[0])
    mean = report.output_tokens_per_s
    axes.axhline(mean, color=COLOURS[0], linewidth=0.8, linestyle="--")
    style(axes, f"output tokens/s (mean {mean:.1f})")
    axes.set_ylim(bottom=0)


def _draw_requests(axes: Axes, report: Report) -> None:
    _stairs(axes, report, report.timeline.running, "running", COLOURS[2])
    _stairs(axes, report, report.timeline.waiting, "waiting", COLOURS[1])
    style(axes, "requests")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _draw_kv(axes: Axes, report: Report) -> None:
    from matplotlib.ticker import PercentFormatter

    _stairs(axes, report, report.timeline.kv, "all nodes", COLOURS[0])
    _stairs(axes, report, report.timeline.kv_fullest, "fullest node", COLOURS[3])
    style(axes, "KV pages in use")
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(axes)


def _draw_heat(figure: Figure, axes: Axes, report: Report, nodes: Sequence[str]) -> None:
    timeline = report.timeline
    mean = sum(node.utilisation for node in report.nodes) / max(1, len(report.nodes))
    style(axes, f"share of time each node computes (mean {mean:.0%})", "seconds")
    axes.grid(visible=False)
    if not nodes or timeline.bin_s <= 0:
        _empty(axes, "no steps in the window")
        return
    end_s = timeline.start_s + timeline.bin_s * len(timeline.running)
    idle = (0.0,) * len(timeline.running)
    image = axes.imshow(
        [timeline.utilisation.get(node, idle) for node in nodes],
        aspect="auto",
        interpolation="nearest",
        vmin=0.0,
        vmax=1.0,
        cmap="viridis",
        extent=(timeline.start_s, end_s, len(nodes) - 0.5, -0.5),
    )
    if len(nodes) <= MAX_LABELLED_NODES:
        shares = {node.node: node.utilisation for node in report.nodes}
        axes.set_yticks(range(len(nodes)), [f"{n}  {shares[n]:4.0%}" for n in nodes], fontsize=7)
    else:
        axes.set_ylabel(f"{len(nodes)} nodes", fontsize=9)
        axes.set_yticks([])
    axes.set_xlim(timeline.start_s, end_s)
    bar = figure.colorbar(image, ax=axes, orientation="vertical", fraction=0.015, pad=0.01)
    bar.ax.tick_params(labelsize=7)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower right", ncols=2, framealpha=0.85, edgecolor="none")


def _empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=9)
