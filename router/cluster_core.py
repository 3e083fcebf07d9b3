"""The cluster half of the core: membership events to assignments, readiness and flow. Pure.

Says what changed (`ClusterChange`); the request half of the core draws the consequences. The max
flow is computed when it is first asked for after a change: while a large cluster loads, nodes get
ready by the dozen, and nobody looks at the flows in between.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helix_mq.clock import Clock
from helix_mq.ids import ROUTER, Epoch, NodeId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import Register, RegisterAgain, Rejected, SliceRef
from helix_mq.models.config import ModelConfig
from router import events as ev
from router.assigning import Assigner
from router.change import ClusterChange, to_member
from router.flow_keeper import FlowKeeper
from router.flows import LiveFlow
from router.link_forms import Activations
from router.link_watch import Edge, LinkSettings, LinkWatch
from router.membership import Member, Membership, NodeState
from router.moves import Moves, MoveSettings
from router.placing import Placer
from router.relocation import EpochsInUse
from router.weights_rule import Allowed, weights_refusal
from solver.problem import Problem


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    dead_after_s: float = 3.0
    max_nodes: int = 256
    """Everybody connects to everybody, at some five file descriptors and three sockets each."""
    recover_s: float = 30.0
    """After losing coverage new requests still queue this long, since a restart may bring it
    back; after that they are refused at once."""
    links: LinkSettings = LinkSettings()
    moves: MoveSettings = MoveSettings()
    solve_apart: bool = False
    """Flows that only follow speeds are solved by who carries out SolveFlow, not in the core."""
    quantise: Allowed = "none"
    activations: Activations = "same"


class ClusterCore:
    def __init__(
        self,
        config: ModelConfig,
        model_digest: str,
        settings: ClusterSettings,
        placer: Placer,
        clock: Clock,
        first_epoch: Epoch,
        problem: Problem | None = None,
    ) -> None:
        """`problem`: what a plan knows of nodes and links; without it, or for nodes it does not
        know, flows follow what nodes have measured."""
        self.membership = Membership(config.num_layers)
        self.moves = Moves(config, self.membership, placer, settings.moves, first_epoch)
        self._assigner = Assigner(config, self.membership, placer, self.moves, clock)
        self.links = LinkWatch(settings.links)
        self._serving = False
        self.flows = FlowKeeper(
            config,
            self.membership,
            self.moves,
            self.links,
            problem,
            solve_apart=settings.solve_apart,
            activations=settings.activations,
        )
        self.config = config
        self._digest = model_digest
        self._settings = settings
        self._placer = placer
        self._clock = clock
        self._uncovered_since_s: float | None = None
        self._started_s = clock.now_s()

    @property
    def epoch(self) -> Epoch:
        """Of the placement that new requests take."""
        return self.moves.epoch

    @property
    def flow(self) -> LiveFlow:
        """The max flow over what serves now; some 0.25 s of work for 1,000 nodes after a change."""
        return self.flows.flow

    @property
    def serving(self) -> bool:
        """There is a flow; known without computing it wherever that can be told."""
        return self._serving

    @property
    def recovering(self) -> bool:
        """Not serving, but it was until a moment ago."""
        since_s = self._uncovered_since_s
        return since_s is not None and self._clock.now_s() - since_s < self._settings.recover_s

    def expect_back(self) -> None:
        """The router restarted: what served before will again, so new requests may wait for it."""
        self._uncovered_since_s = self._clock.now_s()

    def why_not_serving(self) -> str:
        """In words, empty when serving: `layers 12-17 are on no live node (...)`."""
        if self.serving:
            return ""
        text = self.membership.missing_text(self.moves.leavers.out_of_flow()) or self._no_way_text()
        if self._assigner.fault:
            return f"{text}: {self._assigner.fault}"
        waiting = self._assigner.waiting_for()
        return f"{text}; waiting for {waiting}" if waiting else text

    def handle(self, event: ev.Event) -> ClusterChange:
        change = ClusterChange()
        match event:
            case ev.NodeRegistered():
                self._register(event.register, change)
            case ev.NodeReady():
                self._assigner.ready(event, change)
            case ev.NodeAssignFailed():
                self._assigner.failed(event, change)
            case ev.NodeBeat():
                self._beat(event, change)
            case ev.NodeDraining():
                self._drain(event, change)
            case ev.DrainWanted():
                if event.node in self.membership:
                    self.moves.leave(event.node, self._clock.now_s(), change, asked=True)
            case ev.ReplanWanted():
                self.moves.replanner.ask()
            case ev.PlacementWanted():
                self.moves.place(event.slices, change)
            case ev.PlanFound():
                self.moves.found(event, self._clock.now_s(), change)
            case ev.NodeGone():
                if self.membership.is_current(event.node, event.incarnation):
                    self._lose(event.node, event.reason, change)
            case ev.OwnLinks():
                self._report(ROUTER, event.down_s, change)
                self.flows.links(ROUTER, event.reports, self._clock.now_s())
                self.flows.suspects.own_links(
                    (n, s) for n, s in event.down_s if n in self.membership
                )
            case ev.ConnectionBroke():
                self._connection_broke(event, change)
            case ev.FlowSolved():
                self.flows.solved(event, change)
            case ev.Tick():
                self._tick(change)
            case _:
                raise AssertionError(f"not a membership event: {event}")
        return self._finish(change)

    def move_on(self, in_use: EpochsInUse) -> ClusterChange:
        """Called as time passes, with what requests on their way need: frees what they do not,
        goes on with re-placements, lets nodes leave, looks for better placements."""
        change, now_s = ClusterChange(), self._clock.now_s()
        for node in self.moves.tick(in_use, self._uncovered_s(now_s), now_s, change):
            member = self.membership.get(node)
            if member is not None:
                self.moves.farewell(member, change)
                self._lose(node, "it is leaving", change)
        return self._finish(change)

    def _uncovered_s(self, now_s: float) -> float | None:
        """For how long nothing serves and nothing on its way will change that; None if it does."""
        if self.serving:
            return None
        states = {m.state for m in self.membership if m.layers is not None}
        if not states or NodeState.LOADING in states:
            return 0.0
        since_s = self._uncovered_since_s
        return now_s - (since_s if since_s is not None else self._started_s)

    def resume(self, slices: Mapping[NodeId, LayerRange]) -> None:
        """The placement of the router's earlier life: nodes may still have it loaded."""
        self._placer.adopt(slices)

    def _finish(self, change: ClusterChange) -> ClusterChange:
        if change.fallback:
            self._placer.fall_back()
        if change.placed or change.fallback or change.given_up:
            # Also those who came while another placement was being made, and waited for it.
            self._assigner.assign(change)
        if change.placed or change.fallback:
            self._assigner.keep(change)
        self._settle(change)
        return change

    def link_lost(self, edge: Edge) -> ClusterChange:
        """Rows were lost on a link: nothing is to go over it for a while."""
        change = ClusterChange()
        if self.links.lost(edge, self._clock.now_s()):
            self._close([edge], "it lost rows", change)
        return self._finish(change)

    def _no_way_text(self) -> str:
        text = "no flow from the first layer to the last"
        unreachable = self.links.text()
        return f"{text}: {unreachable}" if unreachable else text

    def _register(self, register: Register, change: ClusterChange) -> None:
        name, now_s = NodeId(register.node), self._clock.now_s()
        if register.model_digest != self._digest:
            reason = (
                f"{name} has another model (config digest {register.model_digest[:12]}, the "
                f"router's is {self._digest[:12]}): give both the same model folder"
            )
            self._reject(register, "wrong_model", reason, change)
            return
        unlike = weights_refusal(register, self._settings.quantise)
        if unlike is not None:
            self._reject(register, "wrong_weights", unlike, change)
            return
        old = self.membership.get(name)
        if old is not None and old.register.incarnation != register.incarnation:
            self._lose(name, "it registered anew", change)
            old = None
        if old is not None and old.serves and self._still_holds(old, register.holding):
            # The same process, reconnected, with its slice still loaded. What it was told last may
            # have been lost with the connection.
            old.last_heard_s = now_s
            change.effects.append(ev.PeersChanged())
            for order in self.moves.relocation.reconnected(name):
                change.effects.append(to_member(register, order))
            return
        if old is None and len(self.membership) >= self._settings.max_nodes:
            # No rejection, which would end the node: it asks again with every heartbeat.
            text = (
                f"not let in: there are {len(self.membership)} nodes already, which is the limit; "
                "drain one that is not needed"
            )
            change.note(logging.ERROR, text, name, "refused")
            return
        if old is not None and old.serves:
            # Until it has loaded again nothing may be routed there.
            self._lose(name, "it came back without its slice", change)
        member = self.membership.join(register, now_s)
        change.note(logging.INFO, f"joined: {register.device}", name, "joined")
        change.effects.append(ev.PeersChanged())
        for order in self.moves.relocation.rejoined(member):
            change.effects.append(to_member(register, order))
        self.moves.replanner.changed(now_s)
        self._assigner.assign(change)

    def _reject(self, register: Register, code: str, reason: str, change: ClusterChange) -> None:
        change.effects.append(to_member(register, Rejected(code, reason)))
        change.note(logging.ERROR, reason, NodeId(register.node), "refused")

    def _still_holds(self, member: Member, holding: SliceRef | None) -> bool:
        """The newest slice of a node that registers again is the one it serves with, or the one
        it has loaded for the next placement."""
        shift = self.moves.relocation.shift
        ahead = shift.readies.get(member.name) if shift is not None else None
        known = [_holding(member)]
        if ahead is not None:
            known.append(SliceRef(ahead.epoch, ahead.first, ahead.end))
        return holding is not None and holding in known

    def _beat(self, event: ev.NodeBeat, change: ClusterChange) -> None:
        beat = event.beat
        name = NodeId(beat.node)
        member = self.membership.hear(name, beat.incarnation, self._clock.now_s())
        if member is not None:
            member.beat = beat
            self.flows.beat(name, beat, self._clock.now_s())
            down_s = [(NodeId(link.peer), link.down_s) for link in beat.links]
            self._report(name, down_s, change)
        elif name in self.membership:
            reason = f"another process has registered as {name} since: give each its own name"
            order = Rejected("superseded", reason)
            change.effects.append(ev.ToNode(name, beat.incarnation, order))
        else:
            again = RegisterAgain("the router does not know this node (any more)")
            change.effects.append(ev.ToNode(name, beat.incarnation, again))

    def _drain(self, event: ev.NodeDraining, change: ClusterChange) -> None:
        """A node wants to leave: it gets no new requests, and goes when those it has are done."""
        now_s = self._clock.now_s()
        member = self.membership.hear(event.node, event.incarnation, now_s)
        if member is not None:
            self.moves.leave(member.name, now_s, change, asked=False)

    def _lose(self, node: NodeId, reason: str, change: ClusterChange) -> None:
        member = self.membership.leave(node)
        if member is None:
            return
        change.gone.append(node)
        kind = "drained" if node in self.moves.leavers else "lost"
        change.note(logging.WARNING, f"left: {reason}", node, kind)
        change.effects.append(ev.PeersChanged())
        self.moves.lost(node, self._clock.now_s(), change)
        self._assigner.assign(change)
        self.links.forget(node)
        self.flows.forget(node)
        if member.serves:
            change.flow_changed = True

    def _report(
        self, source: NodeId, down_s: Sequence[tuple[NodeId, float]], change: ClusterChange
    ) -> None:
        # Only of members: names are free, and what is remembered of them must not be.
        known = [(n, s) for n, s in down_s if not s or n == ROUTER or n in self.membership]
        newly = self.links.report(source, known, self._clock.now_s())
        if newly:
            self._close(newly, "it is not connected", change)

    def _close(self, edges: Sequence[Edge], why: str, change: ClusterChange) -> None:
        change.closed.extend(edges)
        change.flow_changed = True
        for source, target in edges:
            text = f"no requests over the link {source} > {target}: {why}"
            change.note(logging.WARNING, text, source, "link_closed")

    def _tick(self, change: ClusterChange) -> None:
        now_s, dead_after_s = self._clock.now_s(), self._settings.dead_after_s
        for member in self.membership.silent(now_s, dead_after_s):
            self._lose(member.name, f"not heard from for {dead_after_s:.1f} s", change)
        for source, target in self.links.expire(now_s):
            change.flow_changed = True
            text = f"the link {source} > {target} is used again"
            change.note(logging.INFO, text, source, "link_open")
        self.flows.tick(now_s, change)

    def _connection_broke(self, event: ev.ConnectionBroke, change: ClusterChange) -> None:
        member = self.membership.get(event.node)
        if member is None or event.incarnation not in (None, member.register.incarnation):
            return
        self.flows.suspects.broke(event.node, event.what)
        self.flows.judge(self._clock.now_s(), change)

    def _settle(self, change: ClusterChange) -> None:
        """Once per event, however many nodes it concerned: whether there still is a flow."""
        if not change.flow_changed:
            return
        if change.flow_fresh:
            return
        self.flows.dirty()
        lost_some = bool(change.gone or change.closed or change.moved or self.moves.leavers)
        was_serving = self._serving
        if was_serving and not lost_some:
            # What serves goes on serving when something is added.
            return
        self._serving = self._has_flow()
        if self._serving and not was_serving:
            self._uncovered_since_s = None
            text = f"serving: max flow {self.flow.tokens_per_s:.0f} tokens/s"
            change.note(logging.INFO, text, kind="serving")
        elif was_serving and not self._serving:
            self._uncovered_since_s = self._clock.now_s()
            text = f"not serving: {self.why_not_serving()}"
            change.note(logging.ERROR, text, kind="not_serving")

    def _has_flow(self) -> bool:
        if self.membership.live_placement(self.moves.leavers.out_of_flow()).missing():
            return False
        if self.flows.planned is None and not self.links.closed:
            # All links are there, so wherever a node ends another one goes on.
            return True
        return self.flow.tokens_per_s > 0


def _holding(member: Member) -> SliceRef | None:
    if member.layers is None:
        return None
    return SliceRef(member.epoch, member.layers.first, member.layers.end)
