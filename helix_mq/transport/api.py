"""What a transport is: values that cross it, and the protocols both transports fulfil.

Imports neither zmq nor asyncio. A transport carries opaque multipart messages in order, at most
once, and never blocks: a message is delivered whole or not at all; when a link breaks, what was on
its way is lost and `on_state`/`on_disconnect` say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import msgspec

from helix_mq.transport.limits import DEFAULT_LIMITS, Limits
from helix_mq.transport.security import ClientSecurity, ServerSecurity
from helix_mq.transport.statistics import ChannelStatistics

Buffer = bytes | bytearray | memoryview
Parts = Sequence[Buffer]
"""Parts of one message. Large ones are sent without a copy: leave them unchanged after `send`."""


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One message as it arrived.

    peer: the sender's routing id on a Listener, b"" on a Connection. One connection has one id for
        as long as it lasts; a peer that reconnects comes back under another. An id says where to
        answer, never who it is.
    user: the public key (z85) the sender proved to hold, None on plain sockets. Whatever a message
        claims about its sender must be checked against this.
    parts: views of the received frames, not copies. A view keeps its frame's memory alive (small
        frames share a buffer of some 8 KiB): copy what is kept for long.
    nbytes: of all parts.
    """

    # A msgspec struct because building a frozen dataclass per message costs five times as much.
    peer: bytes
    user: str | None
    parts: Sequence[memoryview]
    nbytes: int


class LinkPhase(Enum):
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class LinkState:
    """What became of a connection; `reason` is a sentence for people, empty when connected."""

    phase: LinkPhase
    reason: str = ""

    @property
    def connected(self) -> bool:
        return self.phase is LinkPhase.CONNECTED


Handler = Callable[[Delivery], None]
"""Runs on the event loop and must be quick. What it raises is counted and logged."""

DisconnectHandler = Callable[[bytes], None]
"""Gets the routing id of a peer whose connection ended, after its last message. A quick notice for
peers that have spoken, not a proof: a notice may come late when the peer vanished without a word,
so what must not hang on a dead peer needs heartbeats of its own."""

StateHandler = Callable[[LinkState], None]
"""Runs on each change. What it sends on `connected` goes out before messages that were queued
while the link was down."""


class Listener(Protocol):
    """A bound socket that many connections reach."""

    @property
    def endpoint(self) -> str:
        """The real address, after binding to port 0."""
        ...

    def send(self, peer: bytes, parts: Parts) -> bool:
        """Queues a message for a peer. False: unknown peer, or no room for it now.

        Raises MessageTooLarge when the message breaks this side's own limits.
        """
        ...

    def statistics(self) -> ChannelStatistics: ...

    async def close(self) -> None: ...


class Connection(Protocol):
    """A connecting socket that redials by itself, for as long as it is open."""

    def send(self, parts: Parts) -> bool:
        """Queues a message, also while the link is down. False: the bounded queue is full.

        When a link breaks, what it had not sent yet is dropped and counted (`disconnected`).
        Raises MessageTooLarge when the message breaks this side's own limits.
        """
        ...

    def statistics(self) -> ChannelStatistics: ...

    async def close(self) -> None: ...


class Transport(Protocol):
    async def listen(
        self,
        endpoint: str,
        handler: Handler,
        *,
        limits: Limits = DEFAULT_LIMITS,
        security: ServerSecurity | None = None,
        insecure: bool = False,
        on_disconnect: DisconnectHandler | None = None,
    ) -> Listener:
        """Binds `endpoint`. Raises InsecureEndpoint, BadEndpoint or EndpointUnavailable."""
        ...

    async def connect(
        self,
        endpoint: str,
        handler: Handler,
        *,
        routing_id: bytes | None = None,
        limits: Limits = DEFAULT_LIMITS,
        security: ClientSecurity | None = None,
        insecure: bool = False,
        on_state: StateHandler | None = None,
    ) -> Connection:
        """Starts connecting and returns at once; `on_state` tells how it goes.

        routing_id: what the id under which the listener sees this connection begins with, for its
            logs; 8 random bytes per dial follow. Fixed ids are not offered: a ROUTER either lets
            any peer take over an id in use, or shuts out an honest one that redials before its
            old connection is cleared away.
        """
        ...

    async def close(self) -> None:
        """Closes every socket that is still open."""
        ...
