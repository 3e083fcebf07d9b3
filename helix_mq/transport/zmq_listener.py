"""The bound end: one ROUTER socket, many peers, each known by the id of its connection.

Decides who is heard: parts within limits, keys still on the allow-list. Cuts connections whose key
was taken off the list, and those beyond the limits. Never blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq
from zmq import zmq_poll

from helix_mq.transport.api import Delivery, DisconnectHandler, Handler, Parts
from helix_mq.transport.backlog import weigh
from helix_mq.transport.cutting import NO_MARK, cut, mark_at
from helix_mq.transport.limits import Limits
from helix_mq.transport.monitor import Monitor, SocketEvent, SocketEventKind
from helix_mq.transport.pump import SLICE_MESSAGES, SLICE_S, Pump
from helix_mq.transport.refusals import NOT_ALLOWED, TOO_MANY
from helix_mq.transport.security import AllowList
from helix_mq.transport.silent import SilentConnections
from helix_mq.transport.statistics import ChannelStatistics, Counters
from helix_mq.transport.wire import LargeInFlight, raw_send, receive, says_here, try_send

_USER = "User-Id"
_UNBIND_S = 1.0
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_NOBLOCK = int(zmq.NOBLOCK)


@dataclass(slots=True)
class _Peer:
    fd: int
    mark: int
    user: str | None
    in_flight: LargeInFlight
    barred: bool = False
    """Its key has lost its standing since: it is cut, and not heard meanwhile."""


class ZmqListener:
    """Use ZmqTransport.listen."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        handler: Handler,
        limits: Limits,
        allow: AllowList | None,
        on_disconnect: DisconnectHandler | None,
        counters: Counters,
    ) -> None:
        self.endpoint = ""
        self._socket = socket
        self._handler = handler
        self._limits = limits
        self._allow = allow
        self._on_disconnect = on_disconnect
        self._counters = counters
        self._peers: dict[bytes, _Peer] = {}
        self._mute: dict[bytes, _Peer] = {}
        """Have only said that they are there; whoever uses this listener knows nothing of them."""
        self._fds: dict[int, bytes | None] = {}
        self._silent = SilentConnections(limits, counters.handshake_failed)
        self._leaving: list[bytes] = []
        self._raw_send = raw_send(socket)
        self._unbound = asyncio.Event()
        self._monitor = Monitor(socket, self._on_event, counters.where)
        self._pump = Pump(socket, self._step, counters.where)
        if allow is not None:
            allow.watch(self._revoked)

    def send(self, peer: bytes, parts: Parts) -> bool:
        """See Listener.send. A peer whose key was taken off the allow-list is unknown."""
        nbytes, large = weigh(parts, self._limits)
        if self._pump.stopped:
            return False
        known = self._peers.get(peer)
        if known is None or known.barred or not self._permitted(known.user):
            return False
        if not known.in_flight.has_room(large):
            return False
        self._pump.look()
        try:
            self._raw_send(peer, _MORE)
            try_send(self._raw_send, parts, large, known.in_flight)
        except zmq.Again:
            return False
        except zmq.ZMQError as e:
            if e.errno == zmq.EHOSTUNREACH:
                return False
            raise
        self._counters.messages_out += 1
        self._counters.bytes_out += nbytes
        return True

    @property
    def closed(self) -> bool:
        return self._pump.stopped

    def statistics(self) -> ChannelStatistics:
        backlog = sum(peer.in_flight.nbytes for peer in self._peers.values())
        return self._counters.statistics(backlog_bytes=backlog)

    async def close(self) -> None:
        """Closes the socket; its address is free afterwards."""
        if not self._pump.stopped:
            self._pump.stop()
            if self._allow is not None:
                self._allow.unwatch(self._revoked)
            if self.endpoint:
                self._socket.unbind(self.endpoint)
                # Ends as soon as ZeroMQ's thread has closed the port; the limit is a safeguard.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_UNBIND_S):
                        await self._unbound.wait()
            self._monitor.close()
            self._socket.close()
            self._peers.clear()
            self._mute.clear()
            self._fds.clear()
            self._silent.close()

    def _permitted(self, user: str | None) -> bool:
        return self._allow is None or (user is not None and user in self._allow)

    def _step(self) -> bool:
        # The hot loop of a process: its lookups and calls are few on purpose.
        until = 0.0
        recv, pump, limits = self._socket.recv, self._pump, self._limits
        reads = pump.reads
        plain, peers, handler, counters = (
            self._allow is None,
            self._peers,
            self._handler,
            self._counters,
        )
        for i in range(SLICE_MESSAGES):
            # Mostly there is one message, or none after a send; two are often followed by more.
            if (i == 1 or (i == 0 and pump.poked)) and not zmq_poll(reads, 0):
                break
            if i:
                now_s = time.perf_counter()
                if not until:
                    until = now_s + SLICE_S
                elif now_s > until:
                    return True
            try:
                peer = recv(_NOBLOCK)
            except zmq.Again:
                break
            parts, nbytes, first, fault = receive(recv, limits)
            known = peers.get(peer) or self._first_of(peer, first, parts)
            if known is None:
                continue
            user = None if plain else _user_of(first)
            if not plain and (known.barred or not self._permitted(user)):
                counters.drop("revoked", user or repr(peer))
                self._bar(known)
                continue
            if fault:
                counters.drop(fault, user or repr(peer))
                continue
            counters.messages_in += 1
            counters.bytes_in += nbytes
            try:
                handler(Delivery(peer, user, parts, nbytes))
            except Exception as e:
                counters.handler_failed(e)
            if pump.stopped:
                return False
        else:
            return True
        # All that the lost peers had sent is delivered by now.
        leaving, self._leaving = self._leaving, []
        for peer in leaving:
            self._forget(peer)
        return False

    def _first_of(self, peer: bytes, frame: zmq.Frame, parts: Sequence[memoryview]) -> _Peer | None:
        """Takes a peer in with its first message; None if that only says that it is there."""
        known = self._mute.pop(peer, None)
        if known is None:
            known = self._greet(peer, frame)
            if says_here(parts):
                self._mute[peer] = known
                if not self._permitted(known.user):
                    self._bar(known)
                return None
        self._peers[peer] = known
        return known

    def _greet(self, peer: bytes, frame: zmq.Frame) -> _Peer:
        fd = _fd_of(frame)
        user = _user_of(frame) if self._allow is not None else None
        # Whatever happened to this descriptor before the message came is already waiting there.
        while self._monitor.drain():
            pass
        if fd in self._fds:
            before = self._fds[fd]
            self._fds[fd] = peer
            if before is not None:
                self._leaving.append(before)
        else:
            # The last words of a connection that is gone.
            self._leaving.append(peer)
        mark = self._silent.pop(fd) or mark_at(fd, self.endpoint)
        return _Peer(fd, mark, user, LargeInFlight(self._limits.backlog_bytes))

    def _revoked(self, keys: frozenset[str]) -> None:
        for peer in (*self._peers.values(), *self._mute.values()):
            if peer.user in keys:
                self._bar(peer)

    def _bar(self, peer: _Peer) -> None:
        """Hears a peer no more and hangs up on it; what it is still sent to is dropped with it."""
        if not peer.barred:
            peer.barred = True
            cut(peer.fd, peer.mark)

    def _accepted(self, fd: int) -> None:
        self._fds[fd] = None
        # That it has ended may be told next, and its number be another's already.
        mark = mark_at(fd, self.endpoint)
        if len(self._fds) > self._limits.max_connections:
            self._counters.handshake_failed(TOO_MANY)
            cut(fd, mark)
        elif mark != NO_MARK:
            self._silent.add(fd, mark)

    def _on_event(self, event: SocketEvent) -> None:
        match event.kind:
            case SocketEventKind.ACCEPTED:
                self._accepted(event.fd)
            case SocketEventKind.LOST:
                self._silent.pop(event.fd)
                peer = self._fds.pop(event.fd, None)
                if peer is not None:
                    self._leaving.append(peer)
                    self._pump.poke()
            case SocketEventKind.UNBOUND:
                self._unbound.set()
            case SocketEventKind.REFUSED:
                # A key that is not allowed is counted where it is judged, with its name.
                if event.refusal is not NOT_ALLOWED:
                    self._counters.handshake_failed(event.refusal)

    def _forget(self, peer: bytes) -> None:
        if self._mute.pop(peer, None) is not None:
            return
        if self._peers.pop(peer, None) is None or self._on_disconnect is None:
            return
        try:
            self._on_disconnect(peer)
        except Exception as e:
            self._counters.handler_failed(e)


def _user_of(frame: zmq.Frame) -> str | None:
    """The key the sender proved to hold; ZeroMQ attaches it to every frame it decrypts."""
    try:
        return str(frame.get(_USER))
    except zmq.ZMQError:
        return None


def _fd_of(frame: zmq.Frame) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1
