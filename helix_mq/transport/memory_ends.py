"""The two ends of a link within one process, and the link between them; see memory.

Mirrors what ZeroMQ does at the same moments: order, bounds, refusals, what is lost with a link.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from helix_mq.transport.api import (
    Delivery,
    DisconnectHandler,
    Handler,
    LinkPhase,
    LinkState,
    Parts,
    StateHandler,
)
from helix_mq.transport.backlog import Backlog, weigh
from helix_mq.transport.limits import Limits
from helix_mq.transport.refusals import HUNG_UP, LOST, MECHANISM, NOT_ALLOWED, Refusal
from helix_mq.transport.security import ClientSecurity, ServerSecurity, fingerprint
from helix_mq.transport.statistics import ChannelStatistics, Counters

_SLICE_MESSAGES = 256


class Courier:
    """Does what is posted in the order of posting, a slice per turn of the loop."""

    def __init__(self) -> None:
        self._posted: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._due = False

    def post(self, deed: Callable[..., None], *args: object) -> None:
        self._posted.append((deed, args))
        self._schedule()

    def _schedule(self) -> None:
        if self._posted and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._due = False
        for _ in range(min(_SLICE_MESSAGES, len(self._posted))):
            deed, args = self._posted.popleft()
            deed(*args)
        self._schedule()


class MemoryLink:
    """One connection between two ends: a bounded queue each way, cut once for both."""

    def __init__(
        self,
        peer: bytes,
        user: str | None,
        listener: MemoryListener,
        connection: MemoryConnection,
        courier: Courier,
    ) -> None:
        self.peer = peer
        self.user = user
        self.listener = listener
        self.connection = connection
        self.open = True
        self.barred = False
        """Its key has lost its standing."""
        self._courier = courier
        self._up = 0
        self._down = 0

    def send_up(self, parts: Parts, nbytes: int) -> bool:
        """To the listener. False: the queue is full."""
        room = self.connection.limits.send_queue_messages
        if self._up >= room + self.listener.limits.receive_queue_messages:
            return False
        self._up += 1
        self._courier.post(self._arrive_up, tuple(parts), nbytes)
        return True

    def send_down(self, parts: Parts, nbytes: int) -> bool:
        """To the connection. False: the queue is full."""
        room = self.listener.limits.send_queue_messages
        if self._down >= room + self.connection.limits.receive_queue_messages:
            return False
        self._down += 1
        self._courier.post(self._arrive_down, tuple(parts), nbytes)
        return True

    def cut(self) -> None:
        """Ends the link; both ends hear of it after what is already on its way."""
        if self.open:
            self.open = False
            self._courier.post(self.listener.lost, self)
            self._courier.post(self.connection.lost, self)

    def _arrive_up(self, parts: Parts, nbytes: int) -> None:
        self._up -= 1
        if _cuts(parts, self.listener.limits):
            self.cut()
            return
        self.listener.arrived(self, parts, nbytes)
        self.connection.flush()

    def _arrive_down(self, parts: Parts, nbytes: int) -> None:
        self._down -= 1
        if _cuts(parts, self.connection.limits):
            self.cut()
            return
        self.connection.arrived(self, parts, nbytes)


class MemoryListener:
    """Use MemoryTransport.listen."""

    def __init__(
        self,
        endpoint: str,
        handler: Handler,
        limits: Limits,
        security: ServerSecurity | None,
        on_disconnect: DisconnectHandler | None,
        counters: Counters,
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self.closed = False
        self._handler = handler
        self._security = security
        self._on_disconnect = on_disconnect
        self._counters = counters
        self._links: dict[bytes, MemoryLink] = {}
        self._spoken: set[bytes] = set()
        if security is not None:
            security.allow.watch(self._revoked)

    def _revoked(self, keys: frozenset[str]) -> None:
        for link in list(self._links.values()):
            if link.user in keys:
                link.barred = True
                link.cut()

    def admit(self, security: ClientSecurity | None) -> Refusal | None:
        """The handshake: None, or why not."""
        refusal: Refusal | None = None
        who = ""
        if (security is None) != (self._security is None):
            refusal = MECHANISM
        elif security is not None and self._security is not None:
            if security.server_public != self._security.key.public:
                refusal = HUNG_UP
            elif security.key.public not in self._security.allow:
                refusal, who = NOT_ALLOWED, fingerprint(security.key.public)
        if refusal is not None:
            self._counters.handshake_failed(refusal, who)
        return refusal

    def joined(self, link: MemoryLink) -> None:
        self._links[link.peer] = link

    def send(self, peer: bytes, parts: Parts) -> bool:
        """See Listener.send."""
        nbytes, _ = weigh(parts, self.limits)
        link = self._links.get(peer)
        # As with ZeroMQ, a peer is known from its first message on.
        if self.closed or link is None or not link.open or peer not in self._spoken:
            return False
        if not self._permitted(link.user) or not link.send_down(parts, nbytes):
            return False
        self._counters.messages_out += 1
        self._counters.bytes_out += nbytes
        return True

    def arrived(self, link: MemoryLink, parts: Parts, nbytes: int) -> None:
        if self.closed:
            return
        self._spoken.add(link.peer)
        if link.barred or not self._permitted(link.user):
            self._counters.drop("revoked", link.user or "")
            return
        delivery = Delivery(link.peer, link.user, [memoryview(p) for p in parts], nbytes)
        _hand_over(delivery, self._handler, self.limits, self._counters)

    def lost(self, link: MemoryLink) -> None:
        self._links.pop(link.peer, None)
        if link.peer in self._spoken:
            self._spoken.discard(link.peer)
            if self._on_disconnect is not None and not self.closed:
                try:
                    self._on_disconnect(link.peer)
                except Exception as e:
                    self._counters.handler_failed(e)

    def statistics(self) -> ChannelStatistics:
        return self._counters.statistics()

    async def close(self) -> None:
        self.closed = True
        if self._security is not None:
            self._security.allow.unwatch(self._revoked)
        for link in list(self._links.values()):
            link.cut()

    def _permitted(self, user: str | None) -> bool:
        return self._security is None or (user is not None and user in self._security.allow)


class MemoryConnection:
    """Use MemoryTransport.connect."""

    def __init__(
        self,
        endpoint: str,
        handler: Handler,
        limits: Limits,
        security: ClientSecurity | None,
        on_state: StateHandler | None,
        counters: Counters,
        *,
        courier: Courier,
        find: Callable[[str], MemoryListener | None],
        new_id: Callable[[], bytes],
    ) -> None:
        self.limits = limits
        self._endpoint = endpoint
        self._handler = handler
        self._security = security
        self._on_state = on_state
        self._counters = counters
        self._courier = courier
        self._find = find
        self._new_id = new_id
        self._loop = asyncio.get_running_loop()
        self._backlog = Backlog(limits)
        self._link: MemoryLink | None = None
        self._state: LinkState | None = None
        self._ever_up = False
        self.closed = False
        self._redial: asyncio.TimerHandle | None = None
        self._courier.post(self._dial)

    def send(self, parts: Parts) -> bool:
        """See Connection.send."""
        nbytes, _ = weigh(parts, self.limits)
        if self.closed:
            return False
        if not self._backlog.waiting and self._send_now(parts, nbytes):
            return True
        return self._backlog.offer(parts, nbytes)

    def flush(self) -> None:
        while self._backlog.waiting:
            parts, nbytes, _ = self._backlog.waiting[0]
            if not self._send_now(parts, nbytes):
                return
            self._backlog.pop()

    def listener_appeared(self, endpoint: str) -> None:
        if endpoint == self._endpoint and self._link is None:
            self._courier.post(self._dial)

    def arrived(self, link: MemoryLink, parts: Parts, nbytes: int) -> None:
        if self.closed or link is not self._link:
            return
        server = self._security.server_public if self._security is not None else None
        delivery = Delivery(b"", server, [memoryview(p) for p in parts], nbytes)
        _hand_over(delivery, self._handler, self.limits, self._counters)

    def lost(self, link: MemoryLink) -> None:
        if self.closed or link is not self._link:
            return
        self._link = None
        self._drop_backlog("disconnected")
        self._courier.post(self._dial)
        self._tell(LinkState(LinkPhase.DISCONNECTED, LOST))

    def statistics(self) -> ChannelStatistics:
        return self._counters.statistics(len(self._backlog.waiting), self._backlog.nbytes)

    async def close(self) -> None:
        if self.closed:
            return
        self.flush()
        self.closed = True
        if self._redial is not None:
            self._redial.cancel()
        if self._link is not None:
            self._link.cut()
        self._drop_backlog("closed")

    def _send_now(self, parts: Parts, nbytes: int) -> bool:
        link = self._link
        if link is None or not link.open or not link.send_up(parts, nbytes):
            return False
        self._counters.messages_out += 1
        self._counters.bytes_out += nbytes
        return True

    def _dial(self) -> None:
        self._redial = None
        listener = self._find(self._endpoint)
        if self.closed or self._link is not None or listener is None:
            return
        refusal = listener.admit(self._security)
        if refusal is not None:
            self._counters.handshake_failed(refusal)
            self._redial = self._loop.call_later(self.limits.redial_s, self._dial)
            self._tell(LinkState(LinkPhase.REFUSED, refusal.sentence))
            return
        user = self._security.key.public if self._security is not None else None
        self._link = MemoryLink(self._new_id(), user, listener, self, self._courier)
        listener.joined(self._link)
        if self._ever_up:
            self._counters.reconnects += 1
        self._ever_up = True
        waiting, self._backlog = self._backlog, Backlog(self.limits)
        self._tell(LinkState(LinkPhase.CONNECTED))
        self._backlog.take_over(waiting)
        self.flush()

    def _drop_backlog(self, reason: str) -> None:
        lost = self._backlog.clear()
        if lost:
            self._counters.drop(reason, self._endpoint, lost)

    def _tell(self, state: LinkState) -> None:
        if state == self._state:
            return
        self._state = state
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception as e:
                self._counters.handler_failed(e)


def _cuts(parts: Parts, limits: Limits) -> bool:
    """Whether ZeroMQ would hang up on a part this large."""
    return any(memoryview(part).nbytes > limits.max_message_bytes for part in parts)


def _hand_over(delivery: Delivery, handler: Handler, limits: Limits, counters: Counters) -> None:
    who = delivery.user or repr(delivery.peer)
    if delivery.nbytes > limits.max_message_bytes:
        counters.drop("too_large", who)
    elif len(delivery.parts) > limits.max_parts:
        counters.drop("too_many_parts", who)
    else:
        counters.messages_in += 1
        counters.bytes_in += delivery.nbytes
        try:
            handler(delivery)
        except Exception as e:
            counters.handler_failed(e)
