"""The whole data plane, as a node has it: typed headers, checks, credit, pacing, routes.

Each place is a node of one route. What it takes in goes through the node's own inbox and ledger,
and what it passes on gets a new header, as after a step; only the layers are missing. Frames up to
64 KiB are a batch of decodes, larger ones a chunk of one prompt, which the link may cut in pieces.
A trip after the other are steps of the same requests, as a batch that goes round and round. A
stream's decodes are of many sequences, as a node's are; the link may join small ones that follow
each other at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

from bench.bus.loop_place import LoopPlace
from bench.bus.types import Spec
from helix_mq.clock import SystemClock
from helix_mq.dataplane import DataPlane, InLink, PlaneHandlers, PlaneIdentity
from helix_mq.errors import FrameError
from helix_mq.frames import Message, pack_route
from helix_mq.ids import Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SAMPLE, FrameHeader, Row
from helix_mq.outlink import PeerAddress
from helix_mq.transport import AllowList, KeyPair, ServerSecurity, ZmqTransport
from nodes.batching import Batcher, SeqKey
from nodes.courses import Courses
from nodes.frame_making import frame_of
from nodes.inbox import NodeView, accept_frame, check_sender
from nodes.ledger import Ledger
from nodes.payload import Payload, cut_payload
from nodes.steps import Batch, use_up

log = logging.getLogger(__name__)

TOKEN_BYTES = 16_384
"""A row of 8,192 bf16 values, or of as many as there are in a smaller frame."""
DECODE_BYTES = 64 * 1024
REFRESH_S = 1.0
_EPOCH = 1
_FOR_EVER = 1 << 31
_SEQUENCES = 64
"""Frames' worth of sequences that decodes are of."""


class PlanePlace(LoopPlace):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._name = _name(spec.place)
        self._next = _name((spec.place + 1) % spec.places)
        key = KeyPair(*spec.keys[spec.place]) if spec.keys else None
        self._transport = ZmqTransport()
        self._plane = DataPlane(
            PlaneIdentity(self._name, 1, key),
            PlaneHandlers(self._on_message, self._on_lost, self._on_credit),
            self._transport,
            SystemClock(),
        )
        self._credited = asyncio.Event()
        self._ledger = Ledger()
        self._courses = Courses(self._ledger, self._plane.foreseen, SystemClock())
        self._sent = 0
        self._first_request = 0
        self._tensor = memoryview(bytearray(os.urandom(spec.size_bytes)))
        self._bytes_left = 0

    async def bind(self) -> None:
        security = None
        if self.spec.keys:
            names = {_name(i): public for i, (public, _) in enumerate(self.spec.keys)}
            security = ServerSecurity(KeyPair(*self.spec.keys[self.spec.place]), AllowList(names))
        self.endpoint = await self._plane.bind(self.spec.endpoint, security)
        self._refresh()

    async def connect(self, endpoint: str) -> None:
        public = (
            self.spec.keys[(self.spec.place + 1) % self.spec.places][0] if self.spec.keys else ""
        )
        await self._plane.set_peers({self._next: PeerAddress(self._next, 1, endpoint, public)})
        await self._credited.wait()

    def _refresh(self) -> None:
        """As a node does: repeats grants that may be lost, measures links."""
        self._plane.refresh()
        self._refreshing = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)

    async def close(self) -> None:
        self._refreshing.cancel()
        await self._plane.close()
        await self._transport.close()

    def prepare(self) -> None:
        size_bytes = self.spec.size_bytes
        token_bytes = min(TOKEN_BYTES, size_bytes)
        tokens = size_bytes // token_bytes
        decodes = size_bytes <= DECODE_BYTES
        self._rows, self._count = (tokens, 1) if decodes else (1, tokens)
        self._width = token_bytes // 2
        # A node asks before a step whether a link has room.
        self._step = _SEQUENCES if decodes else 1
        self._sets = _SEQUENCES if self.streams else 1
        # Every load has sequences of its own; each place counts the loads alike.
        self._first_request += 1000
        self._sent = 0
        self._bytes_left = 0
        names = [_name(i) for i in range(self.spec.places)]
        if not self.streams:
            names.append(names[0])
        hops = tuple(Hop(NodeId(n), LayerRange(i, i + 1)) for i, n in enumerate(names))
        self._route = pack_route(Route(hops))
        self._view = NodeView(
            self._name,
            frozenset({_EPOCH}),
            LayerRange(0, len(hops)),
            len(hops),
            self._width,
            1 << 15,
            _FOR_EVER,
        )
        for seq in self._ledger.sequences():
            self._ledger.close(seq)
        self._courses.stop()
        self._courses.go(self._view, Batcher[Payload](cut_payload), self._stepped)
        if decodes:
            # Running requests: their prompts have passed.
            at = self.spec.place or len(hops) - 1
            for i in range(self._sets * self._rows):
                seq = SeqKey(RequestId(self._first_request + i), Attempt(0))
                self._ledger.open(seq, hops[at].layers, 0, 1)

    def send_one(self) -> bool:
        if self._sent % self._step == 0 and self.streams and self._plane.blocked_peers():
            return False
        rows = self._next_rows()
        header = FrameHeader(_EPOCH, self._name, "bfloat16", self._width, rows, (self._route,))
        return self._plane.send(self._next, header, (self._tensor,))

    def _next_rows(self) -> tuple[Row, ...]:
        turn, self._sent = self._sent, self._sent + 1
        if self._count > 1:
            return (Row(self._first_request, 0, turn * self._count, self._count, 0, 1, 0, 0),)
        # As many sequences in turn as there are: each frame has the next token of its own.
        position, turn = 1 + turn // self._sets, turn % self._sets
        first = self._first_request + turn * self._rows
        if self._rows == 1:
            return (Row(first, 0, position, 1, 0, 1, SAMPLE, 0),)
        return tuple(Row(first + i, 0, position, 1, 0, 1, SAMPLE, 0) for i in range(self._rows))

    def _on_message(self, sender: str, message: Message, nbytes: int, link: InLink) -> None:
        header = message.header
        assert isinstance(header, FrameHeader)
        if header.sender != sender:
            raise FrameError("another's name", reason="identity")
        check_sender(header)
        accepted = accept_frame(
            self._view,
            self._ledger,
            header,
            message.buffers,
            lambda: link.consumed(nbytes),
            int(time.time() * 1000),
        )
        if accepted.refused:
            raise RuntimeError(f"refused: {accepted.refused[0]}")
        self._stepped(accepted.work, message.buffers[0])
        # As a node does, behind what waits for it.
        self._courses.saw(header, accepted.work)

    def _stepped(self, works: Batch, payload: memoryview) -> None:
        # A step has begun: the tokens are out of the inbox.
        use_up(works)
        first = works[0].payload
        if first.hop + 1 < len(first.route.hops):
            on = frame_of(self._name, works, self._width, "bfloat16", payload)
            self._plane.send(self._next, on.header, on.buffers)
        self._bytes_left += payload.nbytes
        whole, self._bytes_left = divmod(self._bytes_left, self.spec.size_bytes)
        if whole:
            self.arrived(whole)

    def _on_lost(self, peer: str) -> None:
        # In the middle of a load nothing arrives any more, which the bench sees.
        log.info("the link to %s is gone", peer)

    def _on_credit(self) -> None:
        self._credited.set()
        self.writable()


def _name(place: int) -> str:
    return f"p{place}"
