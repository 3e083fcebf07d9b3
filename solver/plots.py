"""A plan as a picture: bars of layers per node, flows between them, the bottleneck marked.

Rows are nodes by region and type; a bar spans the layers a node holds, the fuller its colour the
more of its capacity is used. Everything in the min cut is drawn in red. What is shown is decided in
plain values (`Picture`); matplotlib only draws them, and is imported only then. The same plan gives
the same bytes.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from solver.figures import grouped, percent
from solver.flow import CutKind
from solver.problem import SINK, SOURCE, Problem
from solver.search_types import PlanResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
DOTS_PER_INCH = 140
MAX_LABELLED_ROWS = 150
MAX_HEIGHT_IN = 40.0
WIDTH_IN = 13.0
BOTTLENECK = "#d00000"
FLOW = "#404040"
COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#56b4e9",
    "#cc79a7",
    "#8c6d1f",
    "#7f7f7f",
    "#b5bd00",
)
"""Told apart with any colour vision (mostly Okabe and Ito's); none is near the bottleneck's red."""
HATCHES = ("", "///", "...", "xxx")


@dataclass(frozen=True, slots=True)
class Row:
    """One node. `layers` None: it holds nothing. `use` = flow / capacity."""

    node: NodeId
    type_name: str
    region: str
    layers: LayerRange | None
    tokens_per_s: float
    capacity_tokens_per_s: float
    cut: frozenset[CutKind]

    @property
    def use(self) -> float:
        if self.capacity_tokens_per_s <= 0:
            return 0.0
        return min(1.0, self.tokens_per_s / self.capacity_tokens_per_s)


@dataclass(frozen=True, slots=True)
class Stream:
    """Flow on a link at the layer boundary where requests change nodes. None: the router."""

    src_row: int | None
    dst_row: int | None
    layer: int
    tokens_per_s: float
    in_cut: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is drawn: rows from top to bottom, streams thinnest first, two lines of title."""

    title: str
    subtitle: str
    num_layers: int
    rows: tuple[Row, ...]
    streams: tuple[Stream, ...]


def picture(problem: Problem, result: PlanResult) -> Picture:
    """What a plot of `result` shows. Nodes by region, type, first layer and name."""
    slices, flow = result.placement.slices, result.flow
    cuts = {(e.kind, e.src, e.dst) for e in flow.min_cut}
    rows = []
    for node in problem.nodes:
        layers = slices.get(node.name)
        rows.append(
            Row(
                node=node.name,
                type_name=node.type_name,
                region=node.region,
                layers=layers,
                tokens_per_s=flow.node_flow.get(node.name, 0.0),
                capacity_tokens_per_s=node.tokens_per_s(len(layers)) if layers else 0.0,
                cut=frozenset(
                    k
                    for k in CutKind
                    if k is not CutKind.LINK and (k, node.name, node.name) in cuts
                ),
            )
        )
    rows.sort(key=_order)
    index = {row.node: i for i, row in enumerate(rows)}
    streams = [
        Stream(
            src_row=None if edge.src == SOURCE else index[edge.src],
            dst_row=None if edge.dst == SINK else index[edge.dst],
            layer=0 if edge.src == SOURCE else slices[edge.src].end,
            tokens_per_s=edge.tokens_per_s,
            in_cut=(CutKind.LINK, edge.src, edge.dst) in cuts,
        )
        for edge in flow.edges
        # A stray unit of rounding is no stream.
        if edge.tokens_per_s > 1e-6 * max(1.0, flow.tokens_per_s)
        or (CutKind.LINK, edge.src, edge.dst) in cuts
    ]
    streams.sort(key=lambda s: (s.in_cut, s.tokens_per_s, s.layer, s.src_row or 0, s.dst_row or 0))
    used = sum(1 for row in rows if row.tokens_per_s > 0)
    flows = grouped(result.objective_tokens_per_s, 1)
    return Picture(
        title=f"{problem.name}: {flows} tokens/s by {result.method}",
        subtitle=f"{_bound(result)}  ·  flow through {used} of {len(rows)} nodes",
        num_layers=problem.num_layers,
        rows=tuple(rows),
        streams=tuple(streams),
    )


def require_plotting(path: Path) -> None:
    """ConfigError unless a plot could be drawn there: asked before a long search, not after."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"plot={path}: the name must end in {' or '.join(SUFFIXES)}, as that is what is drawn",
            param="plot",
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib: pip install 'helix-mq[plot]'", param="plot")


def plot_plan(problem: Problem, result: PlanResult, path: Path) -> None:
    """Draws `result` to `path`, SVG or PNG by its suffix.

    ConfigError for another suffix, without matplotlib, or if the file cannot be written.
    """
    require_plotting(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    view = picture(problem, result)
    height = min(MAX_HEIGHT_IN, 1.9 + 0.24 * max(6, len(view.rows)))
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    _draw(figure, view)
    # Text stays text, and neither the date nor random ids get in: equal plans, equal files.
    with rc_context({"svg.hashsalt": "helix-mq", "svg.fonttype": "none"}):
        kind = path.suffix.lower()[1:]
        stamp = {"Date": None} if kind == "svg" else {"Software": None}
        try:
            figure.savefig(path, format=kind, dpi=DOTS_PER_INCH, metadata=stamp)
        except OSError as error:
            raise ConfigError(
                f"plot={path}: cannot be written: {error.strerror or error}", param="plot"
            ) from None


def _order(row: Row) -> tuple[str, str, int, str]:
    return (row.region, row.type_name, row.layers.first if row.layers else 10**6, row.node)


def _bound(result: PlanResult) -> str:
    if result.proven_optimal:
        return "proven optimal"
    if not math.isfinite(result.upper_bound_tokens_per_s):
        return "no upper bound known"
    bound = grouped(result.upper_bound_tokens_per_s, 1)
    return f"upper bound {bound} tokens/s, gap {percent(result.gap)}"


def _draw(figure: Figure, view: Picture) -> None:
    axes = figure.add_subplot()
    size = 8.0 if len(view.rows) <= 60 else 6.0
    styles = _styles(row.type_name for row in view.rows)
    _draw_streams(axes, view)
    for y, row in enumerate(view.rows):
        _draw_row(axes, y, row, *styles[row.type_name])
    axes.set_xlim(-0.09 * view.num_layers, 1.045 * view.num_layers)
    axes.set_ylim(len(view.rows) - 0.4, -0.6)
    axes.set_xlabel("layer")
    axes.set_title(view.subtitle, fontsize=9, loc="left")
    figure.suptitle(view.title, fontsize=12, x=0.01, ha="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, color="#d8d8d8")
    axes.set_axisbelow(True)
    labelled = view.rows if len(view.rows) <= MAX_LABELLED_ROWS else ()
    axes.set_yticks(
        range(len(labelled)), [f"{r.node}  {r.type_name}" for r in labelled], fontsize=size
    )
    for y, row in enumerate(labelled):
        text = "holds no layers"
        if row.layers is not None:
            text = f"{row.tokens_per_s:,.0f} of {row.capacity_tokens_per_s:,.0f} ({row.use:.0%})"
        _beside(axes, 1.005, y, text, BOTTLENECK if row.cut else "#303030", size)
    if labelled:
        _beside(axes, 1.005, -0.95, "tokens/s: flow of capacity", "#303030", size)
    _draw_regions(axes, view.rows)
    _draw_legend(figure, styles, view)


def _beside(axes: Axes, x: float, y: float, text: str, colour: str, size: float) -> None:
    """Text right of the bars: `x` as a share of the width, `y` in rows."""
    where = axes.get_yaxis_transform()
    axes.text(x, y, text, transform=where, va="center", ha="left", fontsize=size, color=colour)


def _styles(types: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and hatch by type; more types than colours get hatched."""
    names = sorted(set(types))
    return {
        name: (COLOURS[i % len(COLOURS)], HATCHES[i // len(COLOURS) % len(HATCHES)])
        for i, name in enumerate(names)
    }


def _draw_row(axes: Axes, y: int, row: Row, colour: str, hatch: str) -> None:
    if row.layers is None:
        return
    first, length = row.layers.first, len(row.layers)
    axes.barh(y, length, left=first, height=0.62, color="white", zorder=2.5)
    axes.barh(
        y, length, left=first, height=0.62, color=colour, alpha=0.2 + 0.8 * row.use, zorder=2.6
    )
    edge = BOTTLENECK if CutKind.ENGINE in row.cut else colour
    axes.barh(
        y,
        length,
        left=first,
        height=0.62,
        fill=False,
        edgecolor=edge,
        linewidth=2.2 if CutKind.ENGINE in row.cut else 0.8,
        hatch=hatch,
        zorder=2.8,
    )
    ends = {CutKind.NIC_IN: first, CutKind.NIC_OUT: row.layers.end}
    for kind, x in ends.items():
        if kind in row.cut:
            axes.plot([x, x], [y - 0.45, y + 0.45], color=BOTTLENECK, linewidth=4, zorder=3.2)


def _draw_streams(axes: Axes, view: Picture) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    largest = max((s.tokens_per_s for s in view.streams), default=0.0)
    stub, bend = 0.03 * view.num_layers, 0.012 * view.num_layers
    for stream in view.streams:
        colour = BOTTLENECK if stream.in_cut else FLOW
        width = 0.5 + 4.0 * (stream.tokens_per_s / largest if largest > 0 else 0.0)
        x = stream.layer
        a, b = stream.src_row, stream.dst_row
        if a is None or b is None:
            outer = -stub if a is None else view.num_layers + stub
            y = a if a is not None else b if b is not None else 0
            axes.plot([outer, x], [y, y], color=colour, linewidth=width, alpha=0.8, zorder=2.3)
            continue
        # Leaves its bar to the right, enters the next from the left, unless that one began before.
        after = view.rows[b].layers
        into = -bend if after is not None and after.first == x else bend
        points = [(x, a), (x + 2 * bend, a), (x + 2 * into, b), (x, b)]
        curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
        # Above the bars, and see-through: a stream may pass dozens of rows.
        axes.add_patch(
            PathPatch(
                curve,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                alpha=0.9 if stream.in_cut else 0.45,
                zorder=3.1 if stream.in_cut else 3.0,
            )
        )


def _draw_regions(axes: Axes, rows: tuple[Row, ...]) -> None:
    """A line between regions, their names inside at the left; nothing for a single one."""
    if len({row.region for row in rows}) < 2:
        return
    y = 0
    for region, members in groupby(rows, key=lambda row: row.region):
        if y > 0:
            axes.axhline(y - 0.5, color="#808080", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            region,
            (0.0, y - 0.5),
            xycoords=axes.get_yaxis_transform(),
            xytext=(2, -3),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color="#606060",
        )
        y += len(list(members))


def _draw_legend(figure: Figure, styles: dict[str, tuple[str, str]], view: Picture) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [
        Patch(facecolor=colour, hatch=hatch, edgecolor=colour if not hatch else "white", label=name)
        for name, (colour, hatch) in styles.items()
    ]
    handles.append(Line2D([], [], color=FLOW, alpha=0.6, linewidth=3, label="flow (width)"))
    if any(row.cut for row in view.rows) or any(s.in_cut for s in view.streams):
        handles.append(Line2D([], [], color=BOTTLENECK, linewidth=3, label="bottleneck (min cut)"))
    figure.legend(handles=handles, loc="outside lower left", ncols=9, fontsize=8, frameon=False)
