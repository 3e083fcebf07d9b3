"""A cluster as text on a terminal: lines and tables of it, for `status` and `top`. Pure.

Widths are those of the terminal: 80 columns show what matters, wider ones more. Colours only
repeat what words and numbers say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from helix_mq.cli.cluster_view import ClusterView, HappeningView, LinkView, NodeView

WIDE = 118
"""Columns from which on there is room for more of each node."""
_STRIP = 20
_GOOD, _WARN, _BAD, _DIM = "green", "yellow", "bold red", "dim"


def seconds(value: float) -> str:
    """`0.8 ms`, `31 ms`, `2.4 s`, `5 min`, `3 h 12 min`, `12 d`."""
    if value < 0.01:
        return f"{value * 1e3:.1f} ms"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 10:
        return f"{value:.1f} s"
    if value < 100:
        return f"{value:.0f} s"
    minutes = int(value // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d"


def count(value: float) -> str:
    """`0`, `3.2`, `57`, `1,290`, `12k`, `3.4M`."""
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    whole = value >= 10 or value < 0.05 or value == int(value)
    return f"{value:,.0f}" if whole else f"{value:.1f}"


def data_rate(bytes_per_s: float) -> str:
    """`0 B/s`, `12 kB/s`, `3.4 MB/s`."""
    for factor, unit in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if bytes_per_s >= factor:
            return f"{bytes_per_s / factor:.3g} {unit}"
    return f"{bytes_per_s:.0f} B/s"


def headline(view: ClusterView) -> Text:
    """Whether it serves, for how long the router has been up, and how many drafts were right."""
    router = view.router
    drafted = router.drafted_tokens
    state = ("serving", _GOOD) if view.serving else ("NOT SERVING", _BAD)
    layers = f", {router.num_layers} layers" if router.num_layers else ""
    return Text.assemble(
        (router.model or "helix-mq", "bold"),
        f"{layers}: ",
        state,
        f"; router {router.version} up {seconds(router.uptime_s)}",
        f"; {router.accepted_tokens / drafted:.0%} of drafts right" if drafted else "",
    )


def why(view: ClusterView) -> Text:
    """What caps the flow, or why nothing is served."""
    if not view.serving:
        return Text(view.reason or "no reason is known", _WARN)
    text = view.bottleneck.text
    flow = f"max flow {count(view.flow_tokens_per_s)} tokens/s"
    return Text(f"{text[0].upper()}{text[1:]}." if text else f"{flow}.")


def load(view: ClusterView) -> Text:
    router = view.router
    refused = ", ".join(f"{many} {code}" for code, many in sorted(router.refused_by.items()))
    style = _WARN if router.waiting else ""
    return Text.assemble(
        f"{router.running:,} running, ",
        (f"{router.waiting:,} of {router.max_waiting:,} waiting", style),
        f"; {router.admitted:,} admitted, {router.refused:,} refused"
        + (f" ({refused})" if refused else ""),
    )


def latency(view: ClusterView) -> Text:
    router, ttft, itl = view.router, view.router.ttft, view.router.itl
    if not ttft.count and not itl.count:
        return Text(f"No tokens in the last {seconds(router.over_s)}.", _DIM)
    return Text(
        f"{count(router.output_tokens_per_s)} tok/s out; {seconds(router.over_s)}: first token "
        f"{seconds(ttft.p50_s)} (p99 {seconds(ttft.p99_s)}), next {seconds(itl.p50_s)} "
        f"(p99 {seconds(itl.p99_s)})"
    )


def doing(view: ClusterView) -> Text | None:
    return Text(f"Under way: {view.doing}.", _WARN) if view.doing else None


# -- nodes ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cell: Callable[[NodeView, ClusterView], Text]
    width: int
    right: bool = True


def _state(node: NodeView) -> Text:
    if node.state == "failed":
        return Text("failed", _BAD)
    if node.suspect:
        return Text("suspect", _BAD)
    if node.leaving:
        return Text("leaving", _WARN)
    return Text(node.state, _GOOD if node.state == "ready" else _WARN)


def _layers(node: NodeView) -> Text:
    text = node.layers or "-"
    return Text(f"{text}>{node.next_layers}" if node.next_layers else text)


def _kv(node: NodeView) -> Text:
    if not node.kv_total_pages:
        return Text("-", _DIM)
    style = _BAD if node.kv_share >= 0.95 else _WARN if node.kv_share >= 0.85 else ""
    return Text(f"{node.kv_share:.0%}", style)


def _flow(node: NodeView) -> Text:
    return Text(count(node.flow_tokens_per_s), "bold" if node.caps else "")


def _step(node: NodeView) -> Text:
    return Text(seconds(node.step_s) if node.step_s else "-")


def _slow(node: NodeView) -> Text:
    style = _BAD if node.slowdown >= 1.5 else ""
    return Text(f"{node.slowdown:.1f}", style)


def _strip(node: NodeView, layers: int) -> Text:
    """Where its layers lie in the model: `····████············`."""
    if node.first_layer is None or node.end_layer is None or not layers:
        return Text("·" * _STRIP, _DIM)
    first = min(_STRIP - 1, node.first_layer * _STRIP // layers)
    end = max(first + 1, round(node.end_layer * _STRIP / layers))
    text = Text("·" * first, _DIM)
    text.append("█" * (end - first), _GOOD if node.state == "ready" else _WARN)
    return text.append("·" * (_STRIP - end), _DIM)


_NARROW = (
    _Column("node", lambda n, v: Text(n.node, "bold" if n.caps else ""), 12, right=False),
    _Column("state", lambda n, v: _state(n), 7, right=False),
    _Column("layers", lambda n, v: _layers(n), 7),
    _Column("KV", lambda n, v: _kv(n), 4),
    _Column("tok/s", lambda n, v: Text(count(n.tokens_per_s)), 6),
    _Column("flow", lambda n, v: _flow(n), 6),
    _Column("of", lambda n, v: Text(count(n.rate_tokens_per_s)), 6),
    _Column("step", lambda n, v: _step(n), 6),
    _Column("slow", lambda n, v: _slow(n), 4),
    _Column("queue", lambda n, v: Text(count(n.waiting_rows)), 5),
    _Column("reqs", lambda n, v: Text(count(n.crossing_requests)), 4),
)
_MORE = (
    _Column("kind", lambda n, v: Text(n.kind), 12, right=False),
    _Column("region", lambda n, v: Text(n.region), 10, right=False),
    _Column("", lambda n, v: _strip(n, v.router.num_layers), _STRIP, right=False),
)
_LATER = (
    _Column("should", lambda n, v: Text(seconds(n.expected_step_s) if n.step_s else "-"), 6),
    _Column("busy", lambda n, v: Text(f"{n.busy_share:.0%}"), 4),
    _Column("heard", lambda n, v: Text(seconds(n.heard_s)), 7),
)


def _columns(width: int, *, regions: bool) -> tuple[_Column, ...]:
    if width < WIDE:
        return _NARROW
    wide: tuple[_Column, ...] = (
        *_NARROW[:2],
        *_MORE,
        *_NARROW[2:8],
        _LATER[0],
        *_NARROW[8:],
        *_LATER[1:],
    )
    if not regions:
        wide = tuple(c for c in wide if c.title != "region")
    # What does not fit goes, the least telling first.
    for title in ("busy", "should", "", "heard", "region"):
        if sum(c.width + 1 for c in wide) - 1 <= width:
            break
        wide = tuple(c for c in wide if c.title != title)
    return wide


def ordered(nodes: Sequence[NodeView]) -> list[NodeView]:
    """Those in trouble first, then what caps the flow, then along the layers."""
    return sorted(
        nodes,
        key=lambda n: (
            not n.trouble,
            not n.caps,
            n.first_layer if n.first_layer is not None else 1 << 20,
            n.node,
        ),
    )


def node_table(view: ClusterView, nodes: Sequence[NodeView], width: int) -> Table:
    """One line per node, no wider than `width`. `of` is what the node could pass at most."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style=_DIM)
    columns = _columns(width, regions=any(n.region for n in view.nodes))
    # Names get what is left, as far as they need it.
    longest = max((len(n.node) - columns[0].width for n in view.nodes), default=0)
    spare = width - sum(c.width + 1 for c in columns) + 1
    for column in columns:
        extra = max(0, min(longest, spare)) if column.title == "node" else 0
        table.add_column(
            column.title,
            width=column.width + extra,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.right else "left",
        )
    for node in nodes:
        table.add_row(*(column.cell(node, view) for column in columns))
    return table


def hidden(nodes: Sequence[NodeView]) -> Text:
    """What stands for nodes that there is no line for."""
    flow = sum(n.tokens_per_s for n in nodes)
    bad = sum(bool(n.trouble) for n in nodes)
    state = f"{bad} of them in trouble" if bad else "none of them in trouble"
    return Text(f"and {len(nodes)} more nodes, {state}, {count(flow)} tokens/s", _DIM)


# -- the rest -------------------------------------------------------------------


def troubles(view: ClusterView) -> list[Text]:
    lines = [Text(f"! {n.node} {n.trouble}", _WARN) for n in ordered(view.nodes) if n.trouble]
    lines += [Text(f"! the link {x.name} {x.trouble}", _WARN) for x in view.links if x.trouble]
    return lines


def link_lines(links: Sequence[LinkView]) -> list[Text]:
    """The busiest first: their part of the flow, of what they could carry, and what they do."""
    lines = []
    for x in sorted(links, key=lambda x: (not x.caps, -x.bytes_per_s, x.name)):
        could = f" of {count(x.capacity_tokens_per_s)}" if x.capacity_tokens_per_s else ""
        text = Text(f"{x.name}: ", "bold" if x.caps else "")
        text.append(f"flow {count(x.flow_tokens_per_s)}{could} tok/s, ", "")
        trip = f", there and back {seconds(x.round_trip_s)}" if x.round_trip_s else ""
        lines.append(text.append(f"sends {data_rate(x.bytes_per_s)}{trip}"))
    return lines


def happening_line(one: HappeningView) -> Text:
    """By the clock of this machine's zone."""
    when = time.strftime("%H:%M:%S", time.localtime(one.at_s))
    style = {"warning": _WARN, "error": _BAD}.get(one.level, "")
    who = f"{one.node}: " if one.node else ""
    return Text.assemble((f"{when} ", _DIM), (f"{who}{one.text}", style))


def rule(text: str, width: int) -> Text:
    return Text(f"── {text} ".ljust(width, "─"), _DIM)
