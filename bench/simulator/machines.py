"""The nodes of a run as a cluster: joining, loading, beating, failing. No request comes by here.

Says to the core what daemons say: register, ready, heartbeat. What follows from silence, refusals
and lost links is decided by the core, as in production.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from bench.simulator.control import EPOCH, Control
from bench.simulator.node import SimNode
from bench.simulator.settings import Fault, FaultKind, NodeSettings
from bench.simulator.timeline import Timeline
from bench.simulator.wires import Wire, Wires
from helix_mq.errors import ConfigError
from helix_mq.features import DIRECT
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Placement
from helix_mq.messages.control import Assign, LinkReport, Ready, Register, RegisterAgain
from router import events as ev
from solver.problem import Problem, ProblemNode

DIGEST = "simulated"


class Machines:
    """`nodes` by name, in a fixed order; their lives and links."""

    def __init__(
        self,
        problem: Problem,
        placement: Placement,
        nodes: Mapping[NodeId, SimNode],
        control: Control,
        timeline: Timeline,
        settings: NodeSettings,
        heartbeat_s: float,
    ) -> None:
        self._problem: Mapping[NodeId, ProblemNode] = {n.name: n for n in problem.nodes}
        self._placement = placement
        self._nodes = nodes
        self._control = control
        self._timeline = timeline
        self._settings = settings
        self._heartbeat_s = heartbeat_s
        self._incarnation: dict[NodeId, int] = {}
        self._started = False
        self._untold = False
        """Somebody has come whose links, and links to whom, nobody has spoken of."""
        control.on_order = self._on_order

    def start(self, absent: frozenset[str]) -> None:
        """All nodes but the absent ones join and have their slices loaded, at once.

        Those with the scarcest layer come last: flows are computed when the model is covered, and
        again for every node that comes after that.
        """
        here = [name for name in self._nodes if name not in absent]
        holders = Counter(layer for name in here for layer in self._layers_of(name))
        scarcest = min(holders, key=lambda layer: (holders[layer], layer), default=-1)
        for name in sorted(here, key=lambda name: scarcest in self._layers_of(name)):
            self.join(name)
        self._started = True

    def _layers_of(self, name: NodeId) -> range:
        held = self._placement.slices[name]
        return range(held.first, held.end)

    def join(self, name: NodeId) -> None:
        """A new process of a node registers."""
        self._incarnation[name] = self._incarnation.get(name, 0) + 1
        self._register(name)

    def _register(self, name: NodeId) -> None:
        node = self._problem[name]
        memory = max(1, node.vram_bytes)
        register = Register(
            name,
            self._incarnation[name],
            "",
            "",
            node.type_name,
            memory,
            2,
            DIGEST,
            "1",
            heartbeat_s=self._heartbeat_s,
            features=(DIRECT,),
        )
        self._control.handle(ev.NodeRegistered(register))

    def _on_order(self, order: ev.ToNode) -> None:
        if self._incarnation.get(order.node) != order.incarnation:
            return
        if isinstance(order.message, Assign):
            wait_s = self._settings.load_s if self._started else 0.0
            say = (order.node, order.incarnation, order.message)
            self._timeline.at(self._timeline.now + wait_s, self._loaded, say)
        elif isinstance(order.message, RegisterAgain):
            self._timeline.at(self._timeline.now, self._register, order.node)

    def _loaded(self, say: tuple[NodeId, int, Assign]) -> None:
        name, incarnation, order = say
        if self._incarnation.get(name) != incarnation:
            return
        held = order.end - order.first
        node, page_tokens = self._problem[name], self._settings.page_tokens
        pages = kv_pages(node, held, page_tokens)
        self._nodes[name].load(pages, page_tokens, order.depth)
        speed = node.tokens_per_s(held) * held
        ready = Ready(EPOCH, order.first, order.end, pages, page_tokens, 0.0, speed, "")
        self._control.handle(ev.NodeReady(name, incarnation, ready))
        self._untold = True

    def beat(self) -> None:
        """Every living process says so, and after a change what it has measured of its links."""
        links = self._told_links() if self._untold else {}
        self._untold = False
        if ROUTER in links:
            self._control.handle(ev.OwnLinks((), links[ROUTER]))
        for name, incarnation in self._incarnation.items():
            beat = self._nodes[name].heartbeat(incarnation, EPOCH, links.get(name, ()))
            self._control.handle(ev.NodeBeat(beat))

    def _told_links(self) -> dict[NodeId, tuple[LinkReport, ...]]:
        """By sender, of the links that tokens return over: a thousand nodes have a million."""
        here = [(name, self._placement.slices[name]) for name in self._incarnation]
        firsts = [name for name, held in here if held.first == 0]
        lasts = [name for name, held in here if held.end == self._placement.num_layers]
        told = {name: self._links(name, [ROUTER, *firsts]) for name in lasts}
        return {ROUTER: self._links(ROUTER, firsts), **told}

    def _links(self, source: NodeId, targets: Iterable[NodeId]) -> tuple[LinkReport, ...]:
        """Round trips of those that there are."""
        wires = self._control.wires
        found = [(t, wires.round_trip_s(source, t)) for t in targets if t != source]
        return tuple(
            LinkReport(target, 0, 0, 0, 0.0, round_trip_s=trip_s)
            for target, trip_s in found
            if trip_s is not None
        )

    # -- faults -----------------------------------------------------------------

    def strike(self, fault: Fault) -> None:
        """Carries out one fault of the schedule."""
        name = NodeId(fault.node)
        match fault.kind:
            case FaultKind.KILL:
                self._incarnation.pop(name, None)
                self._nodes[name].die()
            case FaultKind.SLOW:
                self._nodes[name].slowdown = fault.factor
            case FaultKind.CUT:
                for wire in self._between(name, fault.peer):
                    self._cut(wire)
            case FaultKind.RESTORE if fault.peer:
                for wire in self._between(name, fault.peer):
                    wire.up = True
            case FaultKind.RESTORE | FaultKind.JOIN:
                self._nodes[name].slowdown = 1.0
                if name not in self._incarnation:
                    self.join(name)

    def _between(self, one: str, other: str) -> list[Wire]:
        wires: Wires = self._control.wires
        both = [wires.between(one, other), wires.between(other, one)]
        return [wire for wire in both if wire is not None]

    def _cut(self, wire: Wire) -> None:
        wire.go_down()
        if wire.src == ROUTER:
            self._control.handle(ev.LinkLost(NodeId(wire.dst)))
        else:
            self._nodes[NodeId(wire.src)].on_link_lost(wire.dst)


def kv_pages(node: ProblemNode, layers: int, page_tokens: int) -> int:
    """Layer-pages of a node that holds so many layers; ConfigError where its room is unknown."""
    room = node.kv_tokens(layers)
    if room is None:
        raise ConfigError(
            f"node {node.name}: KV room for {layers} layers is unknown", param="kv_tokens"
        )
    return max(1, int(room) // page_tokens)
