"""A cluster on a virtual clock around the production core, with links that delay, break and lose.

Unlike `world.World`, which plays nodes by hand, nodes here are processes of their own: they keep
the production ledger, pass rows on to each other, heartbeat, load, stop and die; messages travel
over links in order, or are lost when a link breaks. Only the model is played: a node's KV is the
tokens it has seen, and the last hop answers with `next_token` of them, so that anything lost,
repeated or reordered anywhere changes all that follows.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from helix_mq.clock import VirtualClock
from helix_mq.errors import HelixError
from helix_mq.ids import ROUTER, Attempt, Epoch, NodeId, RequestId
from helix_mq.layers import LayerRange, Placement, Route
from helix_mq.messages.control import (
    Assign,
    Heartbeat,
    Leave,
    LinkReport,
    Ready,
    RegisterAgain,
    Rejected,
    Retain,
    SliceRef,
)
from helix_mq.messages.data import Refused, RefusedItem, ReleaseItem, TokenItem, Tokens
from helix_mq.sampling import SamplingParams
from nodes.batching import SeqKey
from nodes.ledger import Ledger, Verdict
from router import events as ev
from router.cluster_core import ClusterCore, ClusterSettings
from router.core import Core, CoreSettings
from router.kv_books import KvBooks
from router.placing import FixedPlacer
from router.service import Broken, Delta, Finished, Generation
from router.text import TextStream
from tests.router.world import CONFIG, DIGEST, Letters, Stream, next_token, register, undisturbed

PAGES = 600
PAGE_TOKENS = 16
STEP_S = 0.02
LOST_AFTER_S = 3.0
"""How long rows wait for a link that is down (dataplane.LOST_AFTER_S)."""
SLICES = {
    "a": LayerRange(0, 3),
    "b": LayerRange(0, 4),
    "c": LayerRange(0, 2),
    "d": LayerRange(2, 6),
    "e": LayerRange(3, 6),
    "f": LayerRange(2, 6),
}
"""Any two may go."""


@dataclass(frozen=True, slots=True)
class Traveller:
    """A row on its way to hop `hop` of its route."""

    request: RequestId
    attempt: Attempt
    position: int
    token_ids: tuple[int, ...]
    route: Route
    hop: int
    epoch: int
    seed: int


Message = Traveller | ReleaseItem | Tokens | Refused | msgspec.Struct


@dataclass(slots=True, eq=False)
class Link:
    """One direction between two processes. `generation` counts connections: what was under way in
    an earlier one is lost."""

    source: str
    target: str
    up: bool = False
    generation: int = 0
    down_since_s: float = 0.0
    last_arrival_s: float = 0.0
    waiting: list[Message] = field(default_factory=list)


class SimNode:
    """One process of a node, until it dies."""

    def __init__(self, sim: FaultWorld, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.alive = True
        self.stopped = False
        self.peers: Mapping[str, int] = {}
        self.ledger = Ledger()
        self.refuse_next = 0
        self._sim = sim
        self._inbox: list[Callable[[], None]] = []
        self._slices: dict[int, LayerRange] = {}
        self._kv: dict[SeqKey, list[int]] = {}
        self._next_hop: dict[SeqKey, str] = {}
        self._refusals: list[RefusedItem] = []
        self._beats = 0

    def do(self, act: Callable[[], None]) -> None:
        """Now, when it is continued, or never."""
        if self.alive and self.stopped:
            self._inbox.append(act)
        elif self.alive:
            act()

    def resume(self) -> None:
        self.stopped = False
        inbox, self._inbox = self._inbox, []
        for act in inbox:
            self.do(act)

    # -- control ----------------------------------------------------------------

    def say_register(self) -> None:
        newest = max(self._slices, default=0)
        layers = self._slices.get(newest)
        holding = SliceRef(newest, layers.first, layers.end) if layers is not None else None
        said = replace_struct(register(self.name, self.incarnation), holding=holding)
        self._sim.control(self, ev.NodeRegistered(said))

    def beat(self) -> None:
        self._beats += 1
        links = tuple(
            LinkReport(peer, 0, 0, 0, 0.0, self._sim.down_s(self.name, peer))
            for peer in sorted(self.peers)
        )
        beat = Heartbeat(
            *(self.name, self.incarnation, self._beats, max(self._slices, default=0)),
            *(len(self.ledger), 0, 0, PAGES, PAGES, 0, 0.0, 0, 0, 0, links),
        )
        self._sim.control(self, ev.NodeBeat(beat))

    def on_control(self, message: msgspec.Struct) -> None:
        match message:
            case Assign():
                # A router that assigns may have lost sight of what runs here.
                self._start_anew()
                self._sim.later(self._sim.draw.uniform(0.05, 0.6), lambda: self.do(loaded))

                def loaded() -> None:
                    self._slices[message.epoch] = LayerRange(message.first, message.end)
                    pages = (PAGES, PAGE_TOKENS)
                    said = Ready(message.epoch, message.first, message.end, *pages, 0.1, 1e3, "")
                    self._sim.control(self, ev.NodeReady(NodeId(self.name), self.incarnation, said))
            case Retain():
                self._slices = {e: s for e, s in self._slices.items() if e in message.epochs}
            case RegisterAgain():
                self.say_register()
            case Leave() | Rejected():
                self._sim.end(self)
            case _:
                raise AssertionError(f"a node is told {message}")

    # -- rows -------------------------------------------------------------------

    def on_data(self, message: Message) -> None:
        match message:
            case Traveller():
                self._row(message)
            case ReleaseItem(request, attempt):
                self._close(SeqKey(RequestId(request), Attempt(attempt)))
            case _:
                raise AssertionError(f"a node is sent {message}")

    def _row(self, row: Traveller) -> None:
        seq, hop = SeqKey(row.request, row.attempt), row.route.hops[row.hop]
        held = self._slices.get(row.epoch)
        if held is None:
            self._refuse(seq, "stale_epoch")
            return
        assert held.covers(hop.layers), f"{self.name} is sent {hop.layers} and holds {held}"
        verdict = self.ledger.judge(seq, row.position, hop.layers)
        if verdict is Verdict.STALE:
            return
        if self.refuse_next and verdict is not Verdict.OUT_OF_ORDER:
            self.refuse_next -= 1
            self._give_up([seq], "kv_exhausted")
            return
        if verdict not in (Verdict.OPEN, Verdict.CONTINUE):
            self._refuse(seq, verdict)
            return
        older = self.ledger.open(seq, hop.layers, 0) if verdict is Verdict.OPEN else []
        self.ledger.advance(seq, len(row.token_ids))
        last = row.hop + 1 == len(row.route.hops)
        self._next_hop[seq] = ROUTER if last else row.route.hops[row.hop + 1].node
        for old in older:
            self._close(old)
        self._sim.later(STEP_S, lambda: self.do(lambda: self._step(seq, row)))

    def _step(self, seq: SeqKey, row: Traveller) -> None:
        if seq not in self.ledger:
            return
        kv = self._kv.setdefault(seq, [])
        assert len(kv) == row.position, f"{self.name}: KV of {len(kv)} for a row at {row.position}"
        kv.extend(row.token_ids)
        if row.hop + 1 == len(row.route.hops):
            token = next_token(row.seed, tuple(kv))
            item = TokenItem(row.request, row.attempt, len(kv), token)
            self._sim.send(self.name, ROUTER, Tokens(row.epoch, self.name, (item,)))
        elif not self._sim.send(self.name, self._next_hop[seq], replace(row, hop=row.hop + 1)):
            self._give_up([seq], "no_peer")

    def on_link_lost(self, peer: str) -> None:
        if peer == ROUTER:
            self._say_refused(self._refusals)
        self._give_up([s for s, hop in self._next_hop.items() if hop == peer], "link_lost")

    def _give_up(self, sequences: list[SeqKey], code: str) -> None:
        for seq in sequences:
            self._close(seq)
            self._refuse(seq, code)

    def _refuse(self, seq: SeqKey, code: str) -> None:
        item = RefusedItem(seq.request, seq.attempt, code, f"because of {code}")
        self._refusals.append(item)
        self._say_refused([item])

    def _say_refused(self, items: list[RefusedItem]) -> None:
        self._sim.send(
            self.name, ROUTER, Refused(max(self._slices, default=0), self.name, (*items,))
        )

    def _start_anew(self) -> None:
        self._give_up(self.ledger.sequences(), "not_ready")
        self.ledger = Ledger()

    def _close(self, seq: SeqKey) -> None:
        self.ledger.close(seq)
        self._kv.pop(seq, None)
        self._next_hop.pop(seq, None)


class FaultWorld:
    """`run_for` lets time pass; faults are methods. Every event is followed by `core.check()`."""

    def __init__(self, seed: int, settings: CoreSettings | None = None) -> None:
        self.draw = random.Random(seed)
        self.clock = VirtualClock(start_s=1000.0)
        self.nodes: dict[str, SimNode] = {}
        self.streams: dict[RequestId, Stream] = {}
        self.reroutes = 0
        self.story: list[tuple[float, str]] = []
        """What the router noted, and when."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._incarnations = itertools.count(100)
        self._links: dict[tuple[str, str], Link] = {}
        self._cut: set[tuple[str, str]] = set()
        self._control_cut: set[str] = set()
        self._router_peers: Mapping[str, int] = {}
        placement = Placement(6, {NodeId(n): r for n, r in SLICES.items()})
        cluster = ClusterCore(
            *(CONFIG, DIGEST, ClusterSettings(dead_after_s=3.0, recover_s=1e6)),
            *(FixedPlacer(placement), self.clock, Epoch(7)),
        )
        core_settings = settings or CoreSettings(expected_output_tokens=16)
        self.core = Core(CONFIG, core_settings, cluster, KvBooks(0.9), self.clock, self._new_text)
        for name in sorted(SLICES):
            self.start(name)
        self._every(0.25, lambda: self.handle(ev.Tick()))
        self._every(1.0, self._look_after_links)

    @staticmethod
    def _new_text(generation: Generation) -> TextStream:
        return TextStream(Letters(), generation.stop)

    # -- time -------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_s + after_s, next(self._order), act))

    def _every(self, period_s: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.later(period_s, again)

        self.later(period_s, again)

    def run_for(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self._heap and self._heap[0][0] <= end_s:
            at_s, _, act = heapq.heappop(self._heap)
            self.clock.advance(max(0.0, at_s - self.now_s))
            act()
        self.clock.advance(max(0.0, end_s - self.now_s))

    def run_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        end_s = self.now_s + within_s
        while not condition() and self.now_s < end_s:
            self.run_for(0.25)
        return condition()

    # -- the router -------------------------------------------------------------

    def handle(self, event: ev.Event) -> None:
        effects = self.core.handle(event)
        self.core.check()
        for effect in effects:
            self._carry_out(effect)

    def submit(self, prompt: tuple[int, ...], max_tokens: int, seed: int) -> RequestId | None:
        """None where the router refuses it, which it may only while it does not serve."""
        sampling = SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=seed % 2 == 0)
        generation = Generation(prompt, sampling, deadline_s=1e6)
        request = RequestId(next(self._ids))
        self.streams[request] = Stream(generation)
        try:
            self.handle(ev.Submitted(request, generation))
        except HelixError:
            assert not self.core.cluster.serving
            del self.streams[request]
            return None
        return request

    def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Emit():
                self._emit(effect)
            case ev.SendRow():
                self._send_row(effect)
            case ev.SendRelease():
                self.send(ROUTER, effect.node, effect.item)
            case ev.ToNode():
                node = self.nodes.get(effect.node)
                if node is not None and node.incarnation == effect.incarnation:
                    # Bound now: the node may have another process when it arrives.
                    self._travel(self._control_link(node, outward=True), effect.message)
            case ev.Note():
                self.story.append((self.now_s, f"{effect.node} {effect.request} {effect.text}"))
            case ev.PeersChanged():
                self.later(0.0, self._sync_peers)
            case _:
                pass

    def _send_row(self, row: ev.SendRow) -> None:
        seed = self.streams[row.request].generation.sampling.seed
        traveller = Traveller(
            *(row.request, Attempt(row.attempt), row.position, row.token_ids, row.route, 0),
            *(row.epoch, seed),
        )
        first = row.route.hops[0].node
        if not self.send(ROUTER, first, traveller):
            self.later(0.25, lambda: self.handle(ev.LinkLost(first)))

    def _emit(self, effect: ev.Emit) -> None:
        stream = self.streams[effect.request]
        assert stream.end is None, "an event after the end of a stream"
        match effect.event:
            case Delta(index, token) if token is not None:
                right, _ = undisturbed(stream.generation)
                assert index == len(stream.tokens), "a token is missing or repeated"
                assert token == right[index], "a wrong token"
                stream.tokens.append(token)
            case Finished() | Broken() as end:
                stream.end = end
                if isinstance(end, Finished):
                    self.reroutes += end.reroutes
                if isinstance(end, Finished) and end.finish_reason != "cancelled":
                    assert (stream.tokens, end.finish_reason) == undisturbed(stream.generation)

    def _sync_peers(self) -> None:
        members = {m.name: m.register.incarnation for m in self.core.cluster.membership}
        self._list_peers(ROUTER, members)
        for name, incarnation in members.items():
            node = self.nodes.get(name)
            if node is not None and node.incarnation == incarnation:
                others = {n: i for n, i in members.items() if n != name}
                message = PeerList({**others, ROUTER: 0})
                self._travel(self._control_link(node, outward=True), message)

    def _look_after_links(self) -> None:
        serving = self.core.cluster.membership.serving()
        down = tuple((m.name, self.down_s(ROUTER, m.name)) for m in serving)
        self.handle(ev.OwnLinks(down))

    # -- faults -----------------------------------------------------------------

    def start(self, name: str) -> SimNode:
        """A new process; one that still runs under this name is killed first."""
        self.kill(name)
        node = self.nodes[name] = SimNode(self, name, next(self._incarnations))
        self.later(self.draw.uniform(0.1, 0.5), self._refresh)

        def beat() -> None:
            if node.alive:
                node.do(node.beat)
                self.later(1.0, beat)

        self.later(1.0, beat)
        return node

    def kill(self, name: str) -> None:
        node = self.nodes.pop(name, None)
        if node is not None:
            self.end(node)

    def end(self, node: SimNode) -> None:
        """Its process is gone, and its links with it."""
        node.alive = False
        if self.nodes.get(node.name) is node:
            del self.nodes[node.name]
        for link in self._links.values():
            if link.source == node.name:
                link.waiting.clear()
        self._refresh()

    def stop(self, name: str) -> None:
        if name in self.nodes:
            self.nodes[name].stopped = True

    def resume(self, name: str) -> None:
        if name in self.nodes:
            self.nodes[name].resume()

    def drain(self, name: str) -> None:
        node = self.nodes.get(name)
        if node is not None:
            node.do(lambda: self.control(node, ev.NodeDraining(NodeId(name), node.incarnation)))

    def cut(self, source: str, target: str) -> None:
        self._cut.add((source, target))
        self._refresh()

    def cut_control(self, name: str) -> None:
        self._control_cut.add(name)
        self._refresh()

    def mend(self) -> None:
        """All links work again, all processes run; the dead ones stay dead."""
        self._cut.clear()
        self._control_cut.clear()
        for name in list(self.nodes):
            self.resume(name)
        self._refresh()

    def squeeze(self, name: str) -> None:
        if name in self.nodes:
            self.nodes[name].refuse_next += 1

    # -- links ------------------------------------------------------------------

    def send(self, source: str, target: str, message: Message) -> bool:
        """False when there is no link at all. Over one that is down, rows wait for a while and all
        else for as long as it takes."""
        peers = self._peers_of(source)
        if target not in peers:
            return False
        link = self._links.setdefault((source, target), Link(source, target))
        if link.up:
            self._travel(link, message)
            return True
        link.waiting.append(message)
        if isinstance(message, Traveller):
            generation = link.generation

            def hopeless() -> None:
                if not link.up and link.generation == generation:
                    link.waiting = [m for m in link.waiting if not isinstance(m, Traveller)]
                    link.generation += 1
                    self._tell_lost(source, target)

            self.later(LOST_AFTER_S, hopeless)
        return True

    def control(self, node: SimNode, event: ev.Event) -> None:
        self._travel(self._control_link(node, outward=False), event)

    def down_s(self, source: str, target: str) -> float:
        link = self._links.get((source, target))
        if link is None or link.up:
            return 0.0 if link is not None else 1e-3
        return max(1e-3, self.now_s - link.down_since_s)

    def _peers_of(self, name: str) -> Mapping[str, int]:
        if name == ROUTER:
            return self._router_peers
        node = self.nodes.get(name)
        return node.peers if node is not None else {}

    def _list_peers(self, source: str, peers: Mapping[str, int]) -> None:
        """Links to who is not listed any more go, and those to a process before the present one,
        with all that waits there."""
        before = self._peers_of(source)
        if source == ROUTER:
            self._router_peers = peers
        else:
            self.nodes[source].peers = peers
        for target, incarnation in before.items():
            link = self._links.get((source, target))
            if link is not None and peers.get(target) != incarnation:
                link.up, link.down_since_s = False, self.now_s
                link.generation += 1
                link.waiting.clear()
        self._refresh()

    def _control_link(self, node: SimNode, *, outward: bool) -> Link:
        mine = f"{node.name}#{node.incarnation}"
        key = ("control", mine) if outward else (mine, "control")
        return self._links.setdefault(key, Link(*key))

    def _travel(self, link: Link, message: object) -> None:
        if not link.up:
            return
        generation = link.generation
        at_s = max(link.last_arrival_s, self.now_s + self.draw.uniform(0.001, 0.03))
        link.last_arrival_s = at_s

        def arrive() -> None:
            if link.generation == generation:
                self._arrive(link, message)

        self.later(at_s - self.now_s, arrive)

    def _arrive(self, link: Link, message: object) -> None:
        if link.target == "control":
            self.handle(message)  # type: ignore[arg-type]
        elif link.target == ROUTER:
            assert isinstance(message, Tokens | Refused)
            is_tokens = isinstance(message, Tokens)
            self.handle(ev.TokensArrived(message) if is_tokens else ev.RowsRefused(message))  # type: ignore[arg-type]
        elif link.source == "control":
            node = self.nodes.get(link.target.split("#")[0])
            if node is not None and f"{node.name}#{node.incarnation}" == link.target:
                node.do(lambda: self._node_hears(node, message))
        else:
            node = self.nodes.get(link.target)
            if node is not None:
                node.do(lambda: node.on_data(message))  # type: ignore[arg-type]

    def _node_hears(self, node: SimNode, message: object) -> None:
        if isinstance(message, PeerList):
            self._list_peers(node.name, message.incarnations)
        else:
            assert isinstance(message, msgspec.Struct)
            node.on_control(message)

    def _refresh(self) -> None:
        """Links break and come up by what is alive, listed and cut."""
        names = [ROUTER, *self.nodes]
        for source in names:
            for target in self._peers_of(source):
                self._links.setdefault((source, target), Link(source, target))
        for node in self.nodes.values():
            for outward in (False, True):
                self._control_link(node, outward=outward)
        for link in list(self._links.values()):
            wanted = self._connects(link)
            if link.up and not wanted:
                self._go_down(link)
            elif wanted and not link.up:
                self.later(self.draw.uniform(0.02, 0.3), lambda link=link: self._come_up(link))  # type: ignore[misc]

    def _connects(self, link: Link) -> bool:
        if "control" in (link.source, link.target):
            mine = link.target if link.source == "control" else link.source
            name, _, incarnation = mine.partition("#")
            node = self.nodes.get(name)
            alive = node is not None and str(node.incarnation) == incarnation
            return alive and name not in self._control_cut
        if link.source != ROUTER and link.source not in self.nodes:
            return False
        listed = self._peers_of(link.source).get(link.target)
        target = self.nodes.get(link.target)
        alive = 0 if link.target == ROUTER else target.incarnation if target is not None else None
        return (
            listed is not None and listed == alive and (link.source, link.target) not in self._cut
        )

    def _go_down(self, link: Link) -> None:
        link.up, link.down_since_s = False, self.now_s
        link.generation += 1
        if "control" in (link.source, link.target):
            return
        source, target = link.source, link.target
        link.waiting = [m for m in link.waiting if not isinstance(m, Traveller)]
        self.later(self.draw.uniform(0.001, 0.05), lambda: self._tell_lost(source, target))

    def _tell_lost(self, source: str, target: str) -> None:
        if source == ROUTER:
            self.handle(ev.LinkLost(NodeId(target)))
            return
        node = self.nodes.get(source)
        if node is not None:
            node.do(lambda: node.on_link_lost(target))

    def _come_up(self, link: Link) -> None:
        if link.up or not self._connects(link):
            return
        link.up = True
        waiting, link.waiting = link.waiting, []
        for message in waiting:
            self._travel(link, message)
        if "control" in (link.source, link.target):
            # One connection, both ways at once; the node speaks first.
            mine = link.target if link.source == "control" else link.source
            node = self.nodes[mine.split("#")[0]]
            for outward in (False, True):
                self._control_link(node, outward=outward).up = True
            node.do(node.say_register)


@dataclass(frozen=True, slots=True)
class PeerList:
    """Whom a node may exchange rows with."""

    incarnations: Mapping[str, int]


def replace_struct(value: msgspec.Struct, **fields: object) -> msgspec.Struct:
    return msgspec.structs.replace(value, **fields)
