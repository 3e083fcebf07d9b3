"""One node of a FaultWorld: the production ledger around a played model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import LayerRange, Route
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
from helix_mq.messages.data import (
    FrameHeader,
    Refused,
    RefusedItem,
    ReleaseItem,
    TokenItem,
    Tokens,
)
from nodes.batching import SeqKey
from nodes.ledger import Ledger, Verdict
from router import events as ev
from tests.router.fault_world_time import Timeline
from tests.router.world import next_token, register

PAGES = 600
PAGE_TOKENS = 16
STEP_S = 0.02


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


@dataclass(frozen=True, slots=True)
class RowsFrame:
    """Rows as they are on the wire, for nodes that run the production worker."""

    header: FrameHeader
    buffers: tuple[memoryview, ...]


Message = Traveller | RowsFrame | ReleaseItem | Tokens | Refused | msgspec.Struct


class Outside(Protocol):
    """What a node reaches of the world."""

    @property
    def time(self) -> Timeline: ...

    def control(self, node: SimNode, event: ev.Event) -> None:
        """Says something to the router."""
        ...

    def send(self, source: str, target: str, message: Message) -> bool: ...

    def down_s(self, source: str, target: str) -> float: ...

    def end(self, node: SimNode) -> None: ...


class SimNode:
    """One process of a node, until it dies."""

    features: tuple[str, ...] = ()
    """What its program can."""
    pages = PAGES

    def __init__(self, outside: Outside, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.alive = True
        self.stopped = False
        self.peers: Mapping[str, int] = {}
        self.ledger = Ledger()
        self.refuse_next = 0
        self._outside = outside
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
        said = register(self.name, self.incarnation)
        said = msgspec.structs.replace(said, holding=holding, features=self.features)
        self._outside.control(self, ev.NodeRegistered(said))

    def beat(self) -> None:
        self._beats += 1
        links = tuple(
            LinkReport(peer, 0, 0, 0, 0.0, self._outside.down_s(self.name, peer))
            for peer in sorted(self.peers)
        )
        beat = Heartbeat(
            *(self.name, self.incarnation, self._beats, max(self._slices, default=0)),
            *(len(self.ledger), 0, 0, self.pages, self.pages, 0, 0.0, 0, 0, 0, links),
        )
        self._outside.control(self, ev.NodeBeat(beat))

    def say_ready(self, epoch: int, layers: LayerRange) -> None:
        pages = (self.pages, PAGE_TOKENS)
        said = Ready(epoch, layers.first, layers.end, *pages, 0.1, 1e3, "")
        self._outside.control(self, ev.NodeReady(NodeId(self.name), self.incarnation, said))

    def on_control(self, message: msgspec.Struct) -> None:
        match message:
            case Assign():
                # A router that assigns may have lost sight of what runs here.
                self._start_anew()
                self._outside.time.later(
                    self._outside.time.draw.uniform(0.05, 0.6), lambda: self.do(loaded)
                )

                def loaded() -> None:
                    layers = LayerRange(message.first, message.end)
                    self._slices[message.epoch] = layers
                    self.say_ready(message.epoch, layers)
            case Retain():
                self._slices = {e: s for e, s in self._slices.items() if e in message.epochs}
            case RegisterAgain():
                self.say_register()
            case Leave() | Rejected():
                self._outside.end(self)
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
        self.ledger.advance(seq, row.position, len(row.token_ids))
        last = row.hop + 1 == len(row.route.hops)
        self._next_hop[seq] = ROUTER if last else row.route.hops[row.hop + 1].node
        for old in older:
            self._close(old)
        self._outside.time.later(STEP_S, lambda: self.do(lambda: self._step(seq, row)))

    def _step(self, seq: SeqKey, row: Traveller) -> None:
        if seq not in self.ledger:
            return
        kv = self._kv.setdefault(seq, [])
        assert len(kv) == row.position, f"{self.name}: KV of {len(kv)} for a row at {row.position}"
        kv.extend(row.token_ids)
        if row.hop + 1 == len(row.route.hops):
            token = next_token(row.seed, tuple(kv))
            item = TokenItem(row.request, row.attempt, len(kv), token)
            self._outside.send(self.name, ROUTER, Tokens(row.epoch, self.name, (item,)))
        elif not self._outside.send(self.name, self._next_hop[seq], replace(row, hop=row.hop + 1)):
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
        self._outside.send(
            self.name, ROUTER, Refused(max(self._slices, default=0), self.name, (*items,))
        )

    def _start_anew(self) -> None:
        self._give_up(self.ledger.sequences(), "not_ready")
        self.ledger = Ledger()

    def _close(self, seq: SeqKey) -> None:
        self.ledger.close(seq)
        self._kv.pop(seq, None)
        self._next_hop.pop(seq, None)
