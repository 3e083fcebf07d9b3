"""The flow that new requests follow, kept true to what nodes and links turn out to do. Pure.

Solved when first asked for after nodes or links came or went. When only speeds changed, the old
flow serves until the new one is there: by `solve_apart` it is solved by whoever carries out
SolveFlow, and comes back as FlowSolved; else here at once. Answers to older problems are dropped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from helix_mq.features import WIRE8
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Placement
from helix_mq.messages.control import Heartbeat, LinkReport
from helix_mq.models.config import ModelConfig
from router import events as ev
from router.change import ClusterChange
from router.flows import LiveFlow, LiveNode, MeasuredLinks
from router.link_forms import Activations, LinkForms
from router.link_speeds import LinkSpeeds
from router.link_watch import LinkWatch
from router.live_problem import TOKEN_BYTES, WIRE_ELEMENT_BYTES
from router.live_rates import LiveRates
from router.membership import Member, Membership
from router.moves import Moves
from router.planned_speeds import PlannedSpeeds
from router.solving import FlowProblem
from router.speeds import NodeSpeed
from router.suspects import Suspects
from solver.problem import Problem

TELLING = 1.5
"""A slowdown that has changed by this factor is worth a look for a better placement, and a line."""
TELLING_AGAIN = 1.1
"""The line is said if by this factor the slowdown, or the node's flow, is another than was said."""


@dataclass(frozen=True, slots=True)
class _Told:
    slowdown: float
    flow: float
    """Tokens/s through the node: before, while it is to be told; after, once it was."""


class FlowKeeper:
    def __init__(
        self,
        config: ModelConfig,
        membership: Membership,
        moves: Moves,
        links: LinkWatch,
        problem: Problem | None,
        *,
        solve_apart: bool,
        activations: Activations = "same",
    ) -> None:
        self.suspects = Suspects()
        self.planned = PlannedSpeeds(problem) if problem is not None else None
        self._config = config
        self._membership = membership
        self._moves = moves
        self._watch = links
        self._solve_apart = solve_apart
        self._flow: LiveFlow | None = None
        self._number = 0
        """Of the newest problem; what was asked for under an older one is stale."""
        self._solving = False
        self._again = False
        """Speeds changed while a flow was being solved."""
        self._speeds: dict[NodeId, NodeSpeed] = {}
        self._activation_bytes = config.activation_bytes_per_token(WIRE_ELEMENT_BYTES)
        planned = self.planned.bytes_per_s if self.planned is not None else None
        self._link_speeds = LinkSpeeds(self._activation_bytes, planned or (lambda edge: math.inf))
        self.forms = LinkForms(
            activations,
            config.hidden_size,
            lambda node: membership.all_can([node], WIRE8),
            self._link_speeds.bytes_per_s,
        )
        moves.links = self._link_speeds.planning(self.forms.gain)
        self._rates = LiveRates(config)
        self._said: dict[NodeId, float] = {}
        self._to_tell: dict[NodeId, _Told] = {}
        self._told: dict[NodeId, _Told] = {}

    # -- the flow -------------------------------------------------------------

    @property
    def flow(self) -> LiveFlow:
        """Over what serves now; some 0.25 s of work for 1,000 nodes after a change."""
        if self._flow is None:
            members = self._routed()
            self._flow = self._problem(members).solve()
            if self._flow.tokens_per_s <= 0 and self.suspects.reasons:
                # They cover the layers without the suspects, but their links lead nowhere.
                self._flow = self._problem(self._able()).solve()
        return self._flow

    def dirty(self) -> None:
        """Nodes or links came or went: the flow is another, and is needed now."""
        self._flow = None
        self._number += 1
        self._solving = self._again = False

    def solved(self, event: ev.FlowSolved, change: ClusterChange) -> None:
        """The answer to a SolveFlow."""
        if event.number != self._number:
            return
        self._solving = False
        if event.flow is not None and event.flow.tokens_per_s > 0:
            self._take(event.flow, change)
        if self._again:
            self._again = False
            self._renew(change)

    def _renew(self, change: ClusterChange) -> None:
        if self._flow is None or (change.flow_changed and not change.flow_fresh):
            # It will be computed with the new speeds anyhow.
            return
        if self._solving:
            self._again = True
            return
        problem = self._problem(self._routed())
        if self._solve_apart:
            self._number += 1
            self._solving = True
            change.effects.append(ev.SolveFlow(self._number, problem))
            return
        flow = problem.solve()
        if flow.tokens_per_s > 0:
            self._take(flow, change)

    def _take(self, flow: LiveFlow, change: ClusterChange) -> None:
        self._flow = flow
        change.flow_changed = change.flow_fresh = True
        for node, told in sorted(self._to_tell.items()):
            self._tell(node, told, flow.by_node().get(node, 0.0), change)
        self._to_tell.clear()

    def _tell(self, node: NodeId, told: _Told, after: float, change: ClusterChange) -> None:
        last = self._told.get(node, _Told(1.0, told.flow))
        if f"{told.flow:.0f}" == f"{after:.0f}" or not (
            _differ(told.slowdown, last.slowdown) or _differ(after, last.flow)
        ):
            return
        self._told[node] = _Told(told.slowdown, after)
        goes = "falls" if after < told.flow else "rises"
        change.note(
            logging.WARNING if told.slowdown >= TELLING else logging.INFO,
            f"takes {told.slowdown:.1f}x as long per step as it measured: its flow {goes} from "
            f"{told.flow:.0f} to {after:.0f} tokens/s",
            node,
            "slow",
        )

    def _able(self) -> list[Member]:
        """Those that serve and are not leaving."""
        out = self._moves.leavers.out_of_flow()
        return [m for m in self._membership.serving() if m.name not in out]

    def _routed(self) -> list[Member]:
        """Those that new requests may take: suspects only where nobody else has their layers."""
        able = self._able()
        for node in sorted(self.suspects.reasons):
            rest = [m for m in able if m.name != node]
            slices = {m.name: m.layers for m in rest if m.layers is not None}
            if not Placement(self._config.num_layers, slices).missing():
                able = rest
        return able

    def _problem(self, members: Sequence[Member]) -> FlowProblem:
        measured = self._link_speeds.measured()
        links = None
        if measured:
            narrowed = {
                edge: replace(link, bytes_per_s=link.bytes_per_s * self.forms.gain(edge))
                for edge, link in measured.items()
            }
            links = MeasuredLinks(narrowed, TOKEN_BYTES, self._activation_bytes)
        layers, closed = self._config.num_layers, self._watch.closed
        return FlowProblem(layers, self._live(members), self.planned, closed, links)

    def _live(self, members: Sequence[Member]) -> tuple[LiveNode, ...]:
        rates = self._rates.of(members)
        planned = self.planned.nodes if self.planned is not None else {}
        # Rates of steps under load and speeds of a warm-up are not to be compared: one node that
        # neither a plan nor measurements tell of, and the others count by their warm-up too.
        alike = all(m.name in rates or m.name in planned for m in members)
        nodes = []
        for m in members:
            assert m.layers is not None
            assert m.ready is not None
            rate = rates.get(m.name) if alike or m.name in planned else None
            slowdown = self.slowdown(m.name)
            nodes.append(LiveNode(m.name, m.layers, m.ready.layer_tokens_per_s, rate, slowdown))
        return tuple(nodes)

    def slowdown(self, node: NodeId) -> float:
        """That the flow is computed with."""
        speed = self._speeds.get(node)
        return speed.slowdown if speed is not None else 1.0

    # -- what is heard ----------------------------------------------------------

    def beat(self, node: NodeId, beat: Heartbeat, now_s: float) -> None:
        """Of a member."""
        self.suspects.heard(node)
        speed = self._speeds.get(node)
        if speed is None:
            speed = self._speeds[node] = NodeSpeed(now_s)
        speed.beat(beat, now_s)
        self.links(node, beat.links, now_s)

    def links(self, source: NodeId, reports: Iterable[LinkReport], now_s: float) -> None:
        """Of a member's links, or of the router's own."""
        known = self._membership
        self._link_speeds.report(
            source, [x for x in reports if x.peer == ROUTER or x.peer in known], now_s
        )

    def round_trip_s(self, source: NodeId, target: NodeId) -> float:
        """Of a link, as last measured; 0 where it is not known."""
        return self._link_speeds.round_trip_s(source, target)

    def forget(self, node: NodeId) -> None:
        """The process is gone; the next one of this name begins anew."""
        self.suspects.forget(node)
        self._link_speeds.forget(node)
        for table in (self._speeds, self._said, self._to_tell, self._told):
            table.pop(node, None)

    def tick(self, now_s: float, change: ClusterChange) -> None:
        """Time passed: who is suspect, and whether speeds have changed enough for another flow."""
        self.judge(now_s, change)
        changed = [n for n, s in sorted(self._speeds.items()) if s.changed(now_s)]
        # While the flow is to be solved anew anyhow, it gets whatever is known by then.
        passing = self._flow.tokens_per_s if self._flow is not None else 0.0
        links_changed = self._link_speeds.changed(now_s, passing or math.inf)
        if changed:
            self._note_slow(changed, now_s, change)
        if links_changed:
            self._moves.replanner.changed(now_s)
        forms_changed = self.forms.review(m.name for m in self._membership)
        if forms_changed:
            change.effects.append(ev.PeersChanged())
        if changed or links_changed or forms_changed:
            self._renew(change)

    def _note_slow(self, changed: Sequence[NodeId], now_s: float, change: ClusterChange) -> None:
        self._moves.slowdown = {n: s.slowdown for n, s in sorted(self._speeds.items())}
        for node in changed:
            slowdown, said = self.slowdown(node), self._said.get(node, 1.0)
            if max(slowdown / said, said / slowdown) < TELLING:
                continue
            self._said[node] = slowdown
            self._moves.replanner.changed(now_s)
            if self._flow is not None:
                before = self._to_tell[node].flow if node in self._to_tell else None
                passing = self._flow.by_node().get(node, 0.0)
                self._to_tell[node] = _Told(slowdown, passing if before is None else before)

    def judge(self, now_s: float, change: ClusterChange) -> None:
        """Whom new requests are to avoid, as of now."""
        newly, cleared = self.suspects.judge(self._membership, now_s)
        for node in newly:
            change.note(logging.WARNING, f"suspect: {self.suspects.reasons[node]}", node, "suspect")
        for node in cleared:
            change.note(logging.INFO, "no longer suspect: it is heard again", node, "heard")
        if newly or cleared:
            change.flow_changed = True


def _differ(one: float, other: float) -> bool:
    """By TELLING_AGAIN or more."""
    return max(one, other) >= TELLING_AGAIN * min(one, other)
