"""Says in words what limits a plan, what one more node would bring, and why nodes are idle.

Built from the min cut of the plan's own flow: what stands in it is what caps the throughput, and
nothing else does. Sentences for people; the figures are in the fields beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.explain_what_if import best_addition, with_twin
from solver.figures import grouped
from solver.flow import CutEdge, CutKind, FlowSolution
from solver.problem import SINK, SOURCE, Problem, ProblemNode
from solver.search_index import ProblemIndex

MAX_NAMES = 4
FULL = 0.999
"""Share of its engine's throughput from which a node counts as full."""
MAX_KINDS = 12
"""Types in regions for which one more node is tried."""


@dataclass(frozen=True, slots=True)
class IdleNode:
    """A node through which no flow passes, and why."""

    name: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Advice:
    """One more node of this type and region, on these layers, the rest as planned."""

    type_name: str
    region: str
    layers: LayerRange
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """`bottleneck` names the min cut and its throughput; `advice` is best first, may be empty.

    `as_full`: nodes outside the cut whose engines are at their limit, too.
    """

    tokens_per_s: float
    bottleneck: str
    layers: LayerRange
    cut: tuple[CutEdge, ...]
    advice: tuple[Advice, ...]
    idle: tuple[IdleNode, ...]
    as_full: tuple[NodeId, ...] = ()

    def text(self) -> str:
        """Everything, a sentence a line."""
        lines = [f"{self.bottleneck} {self._cap()} you at {grouped(self.tokens_per_s)} tokens/s."]
        for tip in self.advice[:3]:
            where = f" in {tip.region}" if tip.region else ""
            lines.append(
                f"One more {tip.type_name}{where} on {tip.layers} gives "
                f"{grouped(tip.tokens_per_s)} tokens/s."
            )
        if not self.advice:
            tight = f": at their limit are also {_names(self.as_full)}" if self.as_full else ""
            lines.append(
                f"No single node more, with the rest as planned, raises that{tight}. Plan again "
                "with --add to see what more nodes bring."
            )
        reasons: dict[str, list[NodeId]] = {}
        for node in self.idle:
            reasons.setdefault(node.reason, []).append(node.name)
        for reason, names in reasons.items():
            lines.append(f"Idle: {_names(names)}: {reason}.")
        return "\n".join(lines)

    def _cap(self) -> str:
        many = len(self.cut) > 1 or self.bottleneck.startswith("Layers")
        return "cap" if many else "caps"


def explain(
    problem: Problem, placement: Placement, flow: FlowSolution, *, partial_inference: bool = True
) -> Explanation:
    """What limits `placement`, whose max flow is `flow`."""
    layers = cut_layers(placement, flow.min_cut)
    return Explanation(
        tokens_per_s=flow.tokens_per_s,
        bottleneck=_sentence(problem, placement, flow.min_cut),
        layers=layers,
        cut=flow.min_cut,
        advice=_advice(problem, placement, layers, partial_inference),
        idle=_idle(problem, placement, flow, layers, partial_inference),
        as_full=_as_full(problem, placement, flow),
    )


def _as_full(problem: Problem, placement: Placement, flow: FlowSolution) -> tuple[NodeId, ...]:
    cut = {edge.src for edge in flow.min_cut if edge.kind is CutKind.ENGINE}
    speeds = {
        n.name: n.tokens_per_s(len(placement.slices[n.name]))
        for n in problem.nodes
        if n.name in placement.slices and n.name not in cut
    }
    return tuple(
        name for name in sorted(speeds) if flow.node_flow.get(name, 0.0) >= FULL * speeds[name] > 0
    )


def cut_layers(placement: Placement, cut: Sequence[CutEdge]) -> LayerRange:
    """The layers around the cut: those its nodes share, or the borders its links cross."""
    firsts, ends = [], []
    for edge in cut:
        before, after = placement.slices.get(edge.src), placement.slices.get(edge.dst)
        if edge.kind is CutKind.LINK:
            border = before.end if before is not None else 0
            if edge.dst == SINK:
                border = placement.num_layers
            firsts.append(max(0, border - 1))
            ends.append(min(placement.num_layers, border + 1))
        elif after is not None:
            firsts.append(after.first)
            ends.append(after.end)
    if not firsts:
        return LayerRange(0, placement.num_layers)
    shared = (max(firsts), min(ends))
    if shared[0] < shared[1]:
        return LayerRange(*shared)
    return LayerRange(min(firsts), max(ends))


def _sentence(problem: Problem, placement: Placement, cut: Sequence[CutEdge]) -> str:
    """The members of the cut, grouped: engines by type, NICs, links by the regions they join."""
    nodes = {n.name: n for n in problem.nodes}
    parts = [
        *_engines(nodes, placement, [e for e in cut if e.kind is CutKind.ENGINE]),
        *_nics(nodes, [e for e in cut if e.kind in (CutKind.NIC_IN, CutKind.NIC_OUT)]),
        *_links(nodes, [e for e in cut if e.kind is CutKind.LINK]),
    ]
    if not parts:
        return "No links lead from the router through all layers and back, which"
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:]


def _engines(
    nodes: dict[NodeId, ProblemNode], placement: Placement, cut: Sequence[CutEdge]
) -> list[str]:
    groups: dict[tuple[LayerRange, str], list[NodeId]] = {}
    for edge in cut:
        key = (placement.slices[edge.src], nodes[edge.src].type_name)
        groups.setdefault(key, []).append(edge.src)
    return [
        f"{layers} on {_count(len(names))} {kind}{'s' if len(names) > 1 else ''} ({_names(names)})"
        for (layers, kind), names in sorted(groups.items())
    ]


def _nics(nodes: dict[NodeId, ProblemNode], cut: Sequence[CutEdge]) -> list[str]:
    parts = []
    for kind, what in ((CutKind.NIC_IN, "inbound"), (CutKind.NIC_OUT, "outbound")):
        names = sorted(e.src for e in cut if e.kind is kind)
        if names:
            parts.append(f"the {what} network of {_names(names)}")
    return parts


def _links(nodes: dict[NodeId, ProblemNode], cut: Sequence[CutEdge]) -> list[str]:
    groups: dict[tuple[str, str], list[CutEdge]] = {}
    for edge in cut:
        groups.setdefault((_place(nodes, edge.src), _place(nodes, edge.dst)), []).append(edge)
    parts = []
    for (a, b), edges in sorted(groups.items()):
        pairs = [f"{_end(e.src)} -> {_end(e.dst)}" for e in edges[:MAX_NAMES]]
        more = f" and {len(edges) - MAX_NAMES} more" if len(edges) > MAX_NAMES else ""
        count = f"{_count(len(edges))} link{'s' if len(edges) > 1 else ''}"
        parts.append(f"{count} from {a} to {b} ({', '.join(pairs)}{more})")
    return parts


def _place(nodes: dict[NodeId, ProblemNode], name: NodeId) -> str:
    if name in (SOURCE, SINK):
        return "the router"
    return nodes[name].region or "the cluster"


def _end(name: NodeId) -> str:
    return "router" if name in (SOURCE, SINK) else name


def _count(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number] if number < len(words) else str(number)


def _names(names: Sequence[NodeId]) -> str:
    shown = ", ".join(sorted(names)[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def _advice(
    problem: Problem, placement: Placement, near: LayerRange, partial: bool
) -> tuple[Advice, ...]:
    """One more node of each type and region there is, best gain first."""
    kinds: dict[tuple[str, str], ProblemNode] = {}
    for node in sorted(problem.nodes, key=lambda n: n.name):
        if node.max_layers > 0:
            kinds.setdefault((node.type_name, node.region), node)
    found = []
    for (type_name, region), node in sorted(kinds.items())[:MAX_KINDS]:
        wider = with_twin(problem, node)
        gain = best_addition(wider, placement, wider.nodes[-1].name, near, partial)
        if gain is not None:
            found.append(Advice(type_name, region, gain.layers, gain.tokens_per_s))
    return tuple(sorted(found, key=lambda a: (-a.tokens_per_s, len(a.layers), a.type_name)))


def _idle(
    problem: Problem,
    placement: Placement,
    flow: FlowSolution,
    near: LayerRange,
    partial: bool,
) -> tuple[IdleNode, ...]:
    index = ProblemIndex(problem)
    out = {n.name for n in index.left_out}
    fed = {e.dst for e in flow.edges} - {SINK}
    heard = {e.src for e in flow.edges} - {SOURCE}
    idle = []
    for node in sorted(problem.nodes, key=lambda n: n.name):
        if flow.node_flow.get(node.name, 0.0) > flow.tokens_per_s * 1e-9:
            continue
        held = placement.slices.get(node.name)
        if node.max_layers == 0:
            reason = "it has no room for a single layer"
        elif node.name in out:
            reason = "no link leads to it from the router, or from it back, or it computes nothing"
        elif held is None:
            reason = _spare(problem, placement, node, near, partial)
        elif node.name not in fed:
            reason = f"it holds {held}, but no node that could hand over to it has a link to it"
        elif node.name not in heard:
            reason = f"it holds {held}, but has no link to a node that could go on from there"
        elif flow.tokens_per_s <= 0:
            reason = f"it holds {held}, but nothing flows through all layers"
        else:
            reason = f"it holds {held}, where others already carry all the flow"
        idle.append(IdleNode(node.name, reason))
    return tuple(idle)


def _spare(
    problem: Problem, placement: Placement, node: ProblemNode, near: LayerRange, partial: bool
) -> str:
    gain = best_addition(problem, placement, node.name, near, partial)
    if gain is None:
        return "nowhere near the bottleneck would it raise the flow, with the rest as planned"
    return (
        f"the plan left it out, though on {gain.layers} it would give "
        f"{grouped(gain.tokens_per_s)} tokens/s"
    )
