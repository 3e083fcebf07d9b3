"""A deterministic world around the router's core: it plays the nodes, without sockets or models.

Nodes answer a row with the token that `next_token` gives for the whole sequence so far, so a lost,
repeated or reordered token changes everything after it. The world books, from the effects alone,
which node incarnation was ever given which attempt; `check` holds the core against those books.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from msgspec import structs

from helix_mq.clock import VirtualClock
from helix_mq.errors import HelixError
from helix_mq.ids import ROUTER, Epoch, NodeId, RequestId
from helix_mq.layers import LayerRange, Placement
from helix_mq.messages.control import (
    Assign,
    Heartbeat,
    Leave,
    LinkReport,
    Ready,
    Register,
)
from helix_mq.messages.data import Refused, RefusedItem, ReleaseItem, TokenItem, Tokens
from helix_mq.models.config import Family, ModelConfig
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.cluster_core import ClusterCore, ClusterSettings
from router.core import Core, CoreSettings
from router.kv_books import KvBooks
from router.link_watch import edges_of
from router.placing import FixedPlacer, Placer
from router.service import Broken, Delta, Finished, Generation
from router.sessions import State
from router.text import TextStream

EOS = 96
VOCAB = 97
CONFIG = ModelConfig(
    family=Family.LLAMA,
    num_layers=6,
    hidden_size=8,
    intermediate_size=16,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=VOCAB,
    max_context=4096,
    rms_eps=1e-5,
    rope_theta=1e4,
    eos_ids=(EOS,),
)
SLICES: Mapping[str, LayerRange] = {
    "a": LayerRange(0, 3),
    "b": LayerRange(3, 6),
    "c": LayerRange(0, 4),
    "d": LayerRange(2, 6),
}
"""Two ways in and two ways out: any one node may go."""

DIGEST = "d" * 32
PAGES = 60
PAGE_TOKENS = 16


def next_token(seed: int, tokens: tuple[int, ...]) -> int:
    """What the model says next: decided by the seed and every token so far, their order too."""
    value = seed & 0xFFFFFFFF
    for token in tokens:
        value = (value * 1_000_003 + token + 1) & 0xFFFFFFFF
    return (value >> 7) % VOCAB


def undisturbed(generation: Generation) -> tuple[list[int], str]:
    """The tokens and the finish reason of one machine that is never disturbed."""
    sampling, output = generation.sampling, list[int]()
    while len(output) < sampling.max_tokens:
        token = next_token(sampling.seed, (*generation.prompt_ids, *output))
        output.append(token)
        if token == EOS and not sampling.ignore_eos:
            return output, "stop"
    return output, "length"


class Letters:
    """A detokenizer whose every token is one character, the end marker none."""

    def push(self, token: int) -> str:
        return "" if token == EOS else chr(33 + token)

    def flush(self) -> str:
        return ""


@dataclass(slots=True)
class Stream:
    """What a client has seen."""

    generation: Generation
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    end: Finished | Broken | None = None


Hold = tuple[str, int, RequestId, int]
"""(node, incarnation, request, attempt): KV that may lie there."""


class World:
    """`in_flight`: rows on their way through the nodes. `answered`: tokens sent, for repeating."""

    def __init__(
        self,
        settings: CoreSettings | None = None,
        slices: Mapping[str, LayerRange] = SLICES,
        *,
        placer: Placer | None = None,
        recover_s: float = 30.0,
        features: tuple[str, ...] = (),
    ) -> None:
        """`features`: what every node's program can."""
        self._features = features
        self.clock = VirtualClock(start_s=1000.0)
        self.slices = dict(slices)
        placement = Placement(6, {NodeId(n): r for n, r in slices.items()})
        cluster = ClusterCore(
            CONFIG,
            DIGEST,
            ClusterSettings(dead_after_s=3.0, recover_s=recover_s),
            placer or FixedPlacer(placement),
            self.clock,
            Epoch(7),
        )
        self.core = Core(
            CONFIG, settings or CoreSettings(), cluster, KvBooks(0.9), self.clock, self._new_text
        )
        self.streams: dict[RequestId, Stream] = {}
        self.in_flight: list[ev.SendRow] = []
        self.answered: list[tuple[str, TokenItem]] = []
        self.effects: list[ev.Effect] = []
        self.members: dict[str, int] = {}
        self.holds: set[Hold] = set()
        self._kv: dict[tuple[RequestId, int], list[int]] = {}
        self._ids = itertools.count(1)
        self._incarnations = itertools.count(100)

    @staticmethod
    def _new_text(generation: Generation) -> TextStream:
        return TextStream(Letters(), generation.stop)

    # -- events ---------------------------------------------------------------

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        """One event through the core; its effects are booked and the invariants checked."""
        if isinstance(event, ev.NodeGone):
            self._forget(event.node, event.incarnation)
        effects = self.core.handle(event)
        for effect in effects:
            self._book(effect)
        self.effects += effects
        self.check()
        return effects

    def join(self, node: str, *, ready: bool = True, pages: int = PAGES) -> int:
        """A new process of `node` registers and, unless told otherwise, loads what it is given."""
        incarnation = next(self._incarnations)
        if node in self.members:
            self._forget(node, self.members[node])
        self.members[node] = incarnation
        said = structs.replace(register(node, incarnation), features=self._features)
        effects = self.handle(ev.NodeRegistered(said))
        if ready:
            orders = [e for e in effects if isinstance(e, ev.ToNode) and e.node == node]
            for order in orders:
                if isinstance(order.message, Assign):
                    self.ready(node, order.message, pages=pages)
        return incarnation

    def ready(self, node: str, order: Assign, *, pages: int = PAGES) -> list[ev.Effect]:
        said = Ready(order.epoch, order.first, order.end, pages, PAGE_TOKENS, 0.1, 1000.0, "")
        return self.handle(ev.NodeReady(NodeId(node), self.members[node], said))

    def join_all(self) -> None:
        for node in sorted(self.slices):
            if node not in self.members:
                self.join(node)

    def beat(self, node: str, **down_s: float) -> list[ev.Effect]:
        """`down_s`: for how long links to peers are down; the router's name is `router` here."""
        links = tuple(
            LinkReport(ROUTER if peer == "router" else peer, 0, 0, 0, 0.0, for_s)
            for peer, for_s in down_s.items()
        )
        beat = Heartbeat(node, self.members[node], 1, 7, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, links)
        return self.handle(ev.NodeBeat(beat))

    def lose(self, node: str) -> list[ev.Effect]:
        return self.handle(ev.NodeGone(NodeId(node), self.members[node], "it broke"))

    def pass_time(self, by_s: float, silent: frozenset[str] = frozenset()) -> None:
        """Time passes in steps of a second; all members but the silent ones are heard."""
        for _ in range(int(by_s)):
            self.clock.advance(1.0)
            for node in sorted(self.members):
                if node not in silent:
                    self.beat(node)
            self._forget_silent(silent)
            self.handle(ev.Tick())

    def submit(
        self,
        prompt: tuple[int, ...] = (1, 2, 3),
        sampling: SamplingParams | None = None,
        **fields: object,
    ) -> RequestId:
        """Submits a request; raises what the core raises, having changed nothing."""
        sampling = sampling or SamplingParams(max_tokens=8, seed=5)
        generation = Generation(prompt, sampling, **fields)  # type: ignore[arg-type]
        request = RequestId(next(self._ids))
        self.streams[request] = Stream(generation)
        try:
            self.handle(ev.Submitted(request, generation))
        except HelixError:
            del self.streams[request]
            self.check()
            raise
        return request

    def cancel(self, request: RequestId) -> None:
        self.handle(ev.Cancelled(request))

    # -- what nodes do with rows ------------------------------------------------

    def token_of(self, row: ev.SendRow) -> TokenItem:
        """Runs a row on the world's own KV; a gap or an overlap in positions is an error."""
        kv = self._kv.setdefault((row.request, row.attempt), [])
        assert row.position == len(kv), f"row at {row.position}, KV holds {len(kv)}"
        kv.extend(row.token_ids)
        seed = self.streams[row.request].generation.sampling.seed
        return TokenItem(row.request, row.attempt, len(kv), next_token(seed, tuple(kv)))

    def answer(self, index: int = 0) -> list[ev.Effect]:
        """The row's last hop sends its token."""
        row = self.in_flight.pop(index)
        if self.streams[row.request].end is not None:
            return []
        item = self.token_of(row)
        last = row.route.hops[-1].node
        self.answered.append((last, item))
        if row.direct:
            self._hand_back(row, item)
        return self.tokens(last, item)

    def _hand_back(self, row: ev.SendRow, item: TokenItem) -> None:
        """The last hop sends its token to the first hop, too, unless the text ends with it."""
        generation = self.streams[row.request].generation
        sampling, count = generation.sampling, item.position + 1 - len(generation.prompt_ids)
        if count < sampling.max_tokens and (item.token != EOS or sampling.ignore_eos):
            token = (item.token,)
            again = replace(row, position=item.position, token_ids=token, spec=None, history=())
            self.in_flight.append(again)

    def tokens(self, node: str, *items: TokenItem) -> list[ev.Effect]:
        return self.handle(ev.TokensArrived(Tokens(7, node, items)))

    def refuse(self, index: int, hop: int, code: str) -> list[ev.Effect]:
        """A hop of the row's route refuses it."""
        row = self.in_flight.pop(index)
        node = row.route.hops[hop % len(row.route.hops)].node
        item = RefusedItem(row.request, row.attempt, code, f"because of {code}")
        return self.handle(ev.RowsRefused(Refused(7, node, (item,))))

    def run(self) -> None:
        """Answers rows until there are none."""
        while self.in_flight:
            self.answer()

    # -- books ------------------------------------------------------------------

    def _book(self, effect: ev.Effect) -> None:
        match effect:
            case ev.SendRow():
                self._book_row(effect)
            case ev.SendRelease(node, ReleaseItem(request, attempt)):
                self.holds.discard((node, self.members[node], RequestId(request), attempt))
            case ev.Emit():
                self._book_emit(effect)
            case ev.ToNode(node, incarnation, Leave()):
                self._forget(node, incarnation)
            case _:
                pass

    def _book_row(self, row: ev.SendRow) -> None:
        assert row.route.num_layers == CONFIG.num_layers
        assert not self.core.cluster.links.closed.intersection(
            edges_of(row.route, direct=row.direct)
        )
        for hop in row.route.hops:
            layers = self._served(hop.node, row.epoch)
            assert layers is not None, f"row sent to {hop.node}, which does not serve"
            assert layers.covers(hop.layers)
            self.holds.add((hop.node, self.members[hop.node], row.request, row.attempt))
        if row.position == 0:
            sent = (*self.streams[row.request].generation.prompt_ids, *self._seen(row.request))
            assert row.token_ids == sent
            assert row.spec is not None
        self.in_flight.append(row)

    def _served(self, node: str, epoch: int) -> LayerRange | None:
        """The layers that a node runs for rows of this epoch."""
        member = self.core.cluster.membership.get(node)
        return member.layers if member is not None and member.serves else None

    def _seen(self, request: RequestId) -> list[int]:
        return self.streams[request].tokens

    def _book_emit(self, effect: ev.Emit) -> None:
        stream = self.streams[effect.request]
        assert stream.end is None, "an event after the end of a stream"
        if isinstance(effect.event, Delta):
            assert effect.event.index == len(stream.tokens)
            assert effect.event.token is not None
            stream.tokens.append(effect.event.token)
            stream.text += effect.event.text
        else:
            stream.end = effect.event

    def _forget(self, node: str, incarnation: int) -> None:
        """The process is gone, and its KV with it; rows that crossed it get nowhere."""
        if self.members.get(node) == incarnation:
            del self.members[node]
        self.holds = {h for h in self.holds if h[:2] != (node, incarnation)}

    def _forget_silent(self, silent: frozenset[str]) -> None:
        now_s = self.clock.now_s()
        for member in self.core.cluster.membership.silent(now_s, 3.0):
            assert member.name in silent
            self._forget(member.name, member.register.incarnation)

    def check(self) -> None:
        """The core's own check, and: KV lies exactly where running attempts are."""
        self.core.check()
        expected: set[Hold] = set()
        for request, session in self.core.sessions().items():
            assert self.streams[request].end is None
            if session.state is State.RUNNING:
                assert session.route is not None
                expected |= {
                    (node, self.members[node], request, session.attempt)
                    for node in session.route.nodes
                }
        assert self.holds == expected
        open_streams = {r for r, s in self.streams.items() if s.end is None}
        assert set(self.core.sessions()) == open_streams
        for stream in self.streams.values():
            tokens, reason = undisturbed(stream.generation)
            assert stream.tokens == tokens[: len(stream.tokens)]
            if isinstance(stream.end, Finished) and stream.end.finish_reason != "cancelled":
                assert stream.tokens == tokens
                assert stream.end.finish_reason == reason


def register(node: str, incarnation: int, digest: str = DIGEST, memory: int = 1 << 20) -> Register:
    return Register(node, incarnation, f"mem://{node}", "", "cpu", memory, 4, digest, "1")
