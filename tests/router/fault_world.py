"""A cluster on a virtual clock around the production core, with links that delay, break and lose.

Unlike `world.World`, which plays nodes by hand, nodes here are processes of their own: they keep
the production ledger, pass rows on to each other, heartbeat, load, stop and die; messages travel
over links in order, or are lost when a link breaks. Only the model is played: a node's KV is the
tokens it has seen, and the last hop answers with `next_token` of them, so that anything lost,
repeated or reordered anywhere changes all that follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from helix_mq.errors import HelixError
from helix_mq.ids import ROUTER, Attempt, Epoch, NodeId, RequestId
from helix_mq.layers import LayerRange, Placement
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.cluster_core import ClusterCore, ClusterSettings
from router.core import Core, CoreSettings
from router.kv_books import KvBooks
from router.placing import FixedPlacer
from router.service import Broken, Delta, Finished, Generation
from router.text import TextStream
from tests.router.fault_world_links import Network, PeerList
from tests.router.fault_world_node import Message, SimNode, Traveller
from tests.router.fault_world_time import Timeline
from tests.router.world import CONFIG, DIGEST, Letters, Stream, undisturbed

SLICES = {
    "a": LayerRange(0, 3),
    "b": LayerRange(0, 4),
    "c": LayerRange(0, 2),
    "d": LayerRange(2, 6),
    "e": LayerRange(3, 6),
    "f": LayerRange(2, 6),
}
"""Any two may go."""


class FaultWorld:
    """`run_for` lets time pass; faults are methods. Every event is followed by `core.check()`."""

    def __init__(self, seed: int, settings: CoreSettings | None = None) -> None:
        self.time = Timeline(seed)
        self.draw = self.time.draw
        self.nodes: dict[str, SimNode] = {}
        self.streams: dict[RequestId, Stream] = {}
        self.reroutes = 0
        self.story: list[tuple[float, str]] = []
        """What the router noted, and when."""
        self._ids = itertools.count(1)
        self._incarnations = itertools.count(100)
        self.network = Network(self.time, self.nodes, self.handle)
        self._settings = settings or CoreSettings(expected_output_tokens=16)
        self.core = self._new_core(Epoch(7))
        for name in sorted(SLICES):
            self.start(name)
        self.time.every(0.25, lambda: self.handle(ev.Tick()))
        self.time.every(1.0, self._look_after_links)

    def _new_core(self, epoch: Epoch) -> Core:
        placement = Placement(6, {NodeId(n): r for n, r in SLICES.items()})
        cluster = ClusterCore(
            *(CONFIG, DIGEST, ClusterSettings(dead_after_s=3.0, recover_s=1e6)),
            *(FixedPlacer(placement), self.time.clock, epoch),
        )
        return Core(CONFIG, self._settings, cluster, KvBooks(0.9), self.time.clock, self._new_text)

    @staticmethod
    def _new_text(generation: Generation) -> TextStream:
        return TextStream(Letters(), generation.stop)

    @property
    def now_s(self) -> float:
        return self.time.now_s

    def run_for(self, seconds: float) -> None:
        self.time.run_for(seconds)

    def run_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        return self.time.run_until(condition, within_s)

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        self.time.later(after_s, act)

    # -- the router -------------------------------------------------------------

    def handle(self, event: ev.Event) -> None:
        effects = self.core.handle(event)
        self.core.check()
        for effect in effects:
            self._carry_out(effect)

    def generation(self, prompt: tuple[int, ...], max_tokens: int, seed: int) -> Generation:
        """What a client asks for."""
        sampling = SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=seed % 2 == 0)
        return Generation(prompt, sampling, deadline_s=1e6)

    def right(self, generation: Generation) -> tuple[list[int], str]:
        """The tokens and the finish reason that the client is to see."""
        return undisturbed(generation)

    def submit(self, prompt: tuple[int, ...], max_tokens: int, seed: int) -> RequestId | None:
        """None where the router refuses it, which it may only while it does not serve."""
        generation = self.generation(prompt, max_tokens, seed)
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
                    self.network.tell(node, effect.message)
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
                right, _ = self.right(stream.generation)
                assert index == len(stream.tokens), "a token is missing or repeated"
                assert token == right[index], "a wrong token"
                stream.tokens.append(token)
            case Finished() | Broken() as end:
                stream.end = end
                if isinstance(end, Finished):
                    self.reroutes += end.reroutes
                if isinstance(end, Finished) and end.finish_reason != "cancelled":
                    assert (stream.tokens, end.finish_reason) == self.right(stream.generation)

    def _sync_peers(self) -> None:
        members = {m.name: m.register.incarnation for m in self.core.cluster.membership}
        self.network.list_peers(ROUTER, members)
        for name, incarnation in members.items():
            node = self.nodes.get(name)
            if node is not None and node.incarnation == incarnation:
                others = {n: i for n, i in members.items() if n != name}
                self.network.tell(node, PeerList({**others, ROUTER: 0}))

    def _look_after_links(self) -> None:
        serving = self.core.cluster.membership.serving()
        down = tuple((m.name, self.down_s(ROUTER, m.name)) for m in serving)
        self.handle(ev.OwnLinks(down))

    # -- faults -----------------------------------------------------------------

    def start(self, name: str) -> SimNode:
        """A new process; one that still runs under this name is killed first."""
        self.kill(name)
        node = self.nodes[name] = self.new_node(name, next(self._incarnations))
        self.later(self.draw.uniform(0.1, 0.5), self.network.refresh)

        def beat() -> None:
            if node.alive:
                node.do(node.beat)
                self.later(1.0, beat)

        self.later(1.0, beat)
        return node

    def new_node(self, name: str, incarnation: int) -> SimNode:
        return SimNode(self, name, incarnation)

    def kill(self, name: str) -> None:
        node = self.nodes.pop(name, None)
        if node is not None:
            self.end(node)

    def end(self, node: SimNode) -> None:
        """Its process is gone, and its links with it."""
        node.alive = False
        if self.nodes.get(node.name) is node:
            del self.nodes[node.name]
        self.network.ended(node)

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
        self.network.cut(source, target)

    def cut_control(self, name: str) -> None:
        self.network.cut_control(name)

    def mend(self) -> None:
        """All links work again, all processes run; the dead ones stay dead."""
        self.network.mend()
        for name in list(self.nodes):
            self.resume(name)

    def squeeze(self, name: str) -> None:
        if name in self.nodes:
            self.nodes[name].refuse_next += 1

    # -- what nodes reach ---------------------------------------------------------

    def control(self, node: SimNode, event: ev.Event) -> None:
        self.network.control(node, event)

    def send(self, source: str, target: str, message: Message) -> bool:
        return self.network.send(source, target, message)

    def down_s(self, source: str, target: str) -> float:
        return self.network.down_s(source, target)
