"""One process's end of the data plane: a bound socket, and a connection to each peer.

Speaks LinkHello and Grant itself and hands everything else up with its sender's name. Frames wait
here for credit, never in ZeroMQ; other messages are small and pass at once. Knows nothing of
layers, requests or models. Used by nodes and by the router alike.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from helix_mq.clock import Clock
from helix_mq.errors import FrameError, HelixError
from helix_mq.foreseen import MOST_BYTES, Foreseen, PackedHeader
from helix_mq.frames import FRAME_HEAD, Buffer, Message, decode, encode
from helix_mq.inlink import DEFAULT_WINDOW_BYTES, Answers
from helix_mq.inlink import InLink as InLink
from helix_mq.messages import Kind
from helix_mq.messages.data import FrameHeader, Grant, LinkEcho, LinkHello, LinkProbe
from helix_mq.outlink import OutLink, OutLinkStatistics, PeerAddress
from helix_mq.transport import (
    AllowList,
    ClientSecurity,
    Delivery,
    KeyPair,
    LinkState,
    Listener,
    ServerSecurity,
    Transport,
)

log = logging.getLogger(__name__)

LOST_AFTER_S = 3.0
"""A connection is back within a second after a short break, its peer's restart included."""

_MAX_BAD_KINDS = 1000
"""Senders times reasons that are counted apart."""


MessageHandler = Callable[[str, Message, int, InLink], None]
"""(sender's name, message, its bytes, its link). Frames must be `consumed` on the link later."""


@dataclass(frozen=True, slots=True)
class PlaneIdentity:
    """Who speaks on this plane, with which key; `insecure` allows plain TCP off the loopback."""

    name: str
    incarnation: int
    key: KeyPair | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class PlaneHandlers:
    """Called on the event loop. `on_link_lost(peer)`: what was on its way to it may be lost; also
    when that has waited too long for a connection.
    `on_credit()`: frames that waited may have gone."""

    on_message: MessageHandler
    on_link_lost: Callable[[str], None]
    on_credit: Callable[[], None]


class DataPlane:
    """Sockets of one process for activations, tokens and releases."""

    def __init__(
        self,
        identity: PlaneIdentity,
        handlers: PlaneHandlers,
        transport: Transport,
        clock: Clock,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        lost_after_s: float = LOST_AFTER_S,
    ) -> None:
        """`lost_after_s`: how long frames may wait for a link that is not connected, and how long
        one that is connected may leave probes unanswered."""
        self.me = identity.name
        self.bad_messages: Counter[tuple[str, str]] = Counter()
        self._incarnation = identity.incarnation
        self._transport = transport
        self.clock = clock
        self._on_message = handlers.on_message
        self._on_link_lost = handlers.on_link_lost
        self._on_credit = handlers.on_credit
        self._key = identity.key
        self._insecure = identity.insecure
        self._window = window_bytes
        self._lost_after_s = lost_after_s
        self._listener: Listener | None = None
        self._allow: AllowList | None = None
        self._in: dict[bytes, InLink] = {}
        self._out: dict[str, OutLink] = {}
        self._answers = Answers(self.me, clock, self.answer)
        self.foreseen: dict[bytes, Foreseen] = {}
        """By their headers: frames that whoever has this plane knows already but for the payload.
        They are taken without reading the header once more, or read after all."""

    async def bind(self, endpoint: str, security: ServerSecurity | None) -> str:
        """Binds the data socket; gives the real endpoint. Peers must have the names under which
        `security` allows their keys."""
        self._allow = security.allow if security is not None else None
        self._listener = await self._transport.listen(
            endpoint,
            self._deliver,
            security=security,
            insecure=self._insecure,
            on_disconnect=self._forget,
        )
        return self._listener.endpoint

    async def set_peers(self, peers: Mapping[str, PeerAddress]) -> None:
        """Connects to new peers, drops connections to those gone or restarted.

        What a peer sends here is heard for as long as its own connection stands: one that was
        thought dead and is listed again goes on without a new hello. Keys that are not listed are
        refused by the transport, stale epochs and attempts by the inbox.
        """
        gone = [link for name, link in self._out.items() if peers.get(name) != link.address]
        for link in gone:
            del self._out[link.address.name]
            link.leave()
            if link.connection is not None:
                await link.connection.close()
        new = [a for name, a in peers.items() if name != self.me and name not in self._out]
        soon = asyncio.get_running_loop().call_soon
        links = [OutLink(address, self.clock, self._window, soon) for address in new]
        # Known at once, connected later: frames for them wait here meanwhile.
        self._out.update({link.address.name: link for link in links})
        for link in links:
            try:
                await self._connect(link)
            except Exception as e:
                # A peer that advertises an address nobody can use, or that is one too many for
                # this process's sockets, must not cost the others theirs. It stays unreachable
                # until the next list.
                self._out.pop(link.address.name, None)
                known = isinstance(e, HelixError)
                log.error("cannot reach %s: %s", link.address.name, e, exc_info=not known)

    async def _connect(self, link: OutLink) -> None:
        address = link.address

        def on_state(state: LinkState) -> None:
            self._link_state(link, state)

        security = None
        if self._key is not None and address.public_key:
            security = ClientSecurity(self._key, address.public_key)
        link.connection = await self._transport.connect(
            address.endpoint,
            partial(self._deliver_reply, link),
            routing_id=self.me.encode(),
            security=security,
            insecure=self._insecure,
            on_state=on_state,
        )
        if link.connected:
            self._hello(link)

    def _link_state(self, link: OutLink, state: LinkState) -> None:
        was = link.connected or link.silent
        link.connected = state.connected
        if state.connected and not was:
            self._hello(link)
        elif was and not state.connected:
            link.lose()
            if self._out.get(link.address.name) is link:
                log.warning("data link to %s lost: %s", link.address.name, state.reason)
                self._on_link_lost(link.address.name)

    def _hello(self, link: OutLink) -> None:
        if link.connection is None:
            return
        link.begin(secrets.randbits(62))
        link.connection.send(encode(LinkHello(self.me, self._incarnation, link.link)))

    def send(self, peer: str, header: msgspec.Struct, buffers: Sequence[Buffer] = ()) -> bool:
        """Sends to a peer; frames wait for credit. False: there is no such peer (any more)."""
        link = self._out.get(peer)
        if link is None:
            return False
        if isinstance(header, FrameHeader):
            link.send(header, buffers)
            return True
        if isinstance(header, PackedHeader):
            link.send_decodes(header, buffers)
            return True
        return link.connection is not None and link.connection.send(encode(header, buffers))

    def answer(self, routing_id: bytes, header: msgspec.Struct) -> None:
        if self._listener is not None:
            self._listener.send(routing_id, encode(header))

    def blocked_peers(self) -> set[str]:
        """Peers whose link has frames waiting for credit."""
        return {name for name, link in self._out.items() if link.blocked}

    def overdraft(self) -> None:
        for link in self._out.values():
            link.overdraft()

    def refresh(self) -> None:
        """Repeats every link's grant, as a lost one stops a link, probes the links, and gives up
        the frames that have waited too long for a connection. Call about once a second."""
        for link in self._in.values():
            link.announce()
        # A list: who hears of it may send.
        for name, out in list(self._out.items()):
            if out.fall_silent(self._lost_after_s):
                log.warning("%s has not been heard for %.1f s: its link is down", name, out.down_s)
                self._on_link_lost(name)
            elif out.silent and out.hopeless(self._lost_after_s):
                # Sent since. The connection may come to life again, so its counts stay.
                out.give_up()
                self._on_link_lost(name)
            elif out.hopeless(self._lost_after_s):
                log.warning("no data link to %s for %.1f s", name, out.down_s)
                out.lose()
                self._on_link_lost(name)
            out.probe()

    def statistics(self) -> tuple[OutLinkStatistics, ...]:
        return tuple(self._out[name].statistics() for name in sorted(self._out))

    async def close(self) -> None:
        for link in self._out.values():
            link.leave()
            if link.connection is not None:
                await link.connection.close()
        self._out.clear()
        if self._listener is not None:
            await self._listener.close()

    def _deliver(self, delivery: Delivery) -> None:
        known = self._in.get(delivery.peer)
        parts = delivery.parts
        if self.foreseen and len(parts) == 3 and len(parts[1]) <= MOST_BYTES:
            foreseen = self.foreseen.get(bytes(parts[1]))
            if (
                foreseen is not None
                and known is not None
                and known.user == delivery.user
                and parts[0] == FRAME_HEAD
                and foreseen.came(known, memoryview(parts[2]), delivery.nbytes)
            ):
                return
        try:
            message = decode(parts)
            if message.kind is Kind.LINK_HELLO:
                self._greet(delivery, message)
                return
            if known is None:
                raise FrameError(f"{message.kind.name} before a hello", reason="no_hello")
            if known.user != delivery.user:
                who = known.sender
                raise FrameError(f"another key under {who}'s connection", reason="identity")
            if message.kind is Kind.FRAME:
                known.received(delivery.nbytes)
            elif isinstance(message.header, LinkProbe):
                known.probed(message.header, delivery.nbytes, padded=bool(message.buffers))
                return
        except FrameError as e:
            self.count_bad(known.sender if known is not None else "stranger", e)
            return
        self._on_message(known.sender, message, delivery.nbytes, known)

    def _forget(self, routing_id: bytes) -> None:
        self._in.pop(routing_id, None)

    def _greet(self, delivery: Delivery, message: Message) -> None:
        hello = message.header
        assert isinstance(hello, LinkHello)
        if self._allow is not None and self._allow.name_of(delivery.user or "") != hello.sender:
            # A valid key of one node must not speak in the name of another. Asked of the allow-list
            # and not of the peers: after an outage a link may be back before its node is listed.
            raise FrameError(f"{hello.sender} came with another's key", reason="identity")
        if delivery.peer in self._in:
            # A connection has one: counting anew would forget what lies here unconsumed.
            raise FrameError(f"{hello.sender} greets twice on a connection", reason="hello")
        link = InLink(delivery, hello, self._window, self._answers)
        self._in[delivery.peer] = link
        link.grant()

    def _deliver_reply(self, link: OutLink, delivery: Delivery) -> None:
        try:
            message = decode(delivery.parts)
        except FrameError as e:
            self.count_bad(link.address.name, e)
            return
        if isinstance(message.header, Grant):
            link.granted(message.header)
            self._on_credit()
        elif isinstance(message.header, LinkEcho):
            link.echoed(message.header)

    def count_bad(self, who: str, error: FrameError) -> None:
        """Counts a bad message; logs the first of each kind per peer."""
        key = (who, error.reason)
        if len(self.bad_messages) >= _MAX_BAD_KINDS and key not in self.bad_messages:
            # On plain sockets a name costs nothing.
            key = ("others", error.reason)
        self.bad_messages[key] += 1
        if self.bad_messages[key] == 1:
            log.warning("bad message from %s (%s): %s", who, error.reason, error)
