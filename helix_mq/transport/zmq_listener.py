"""The bound end: one ROUTER socket, many peers, each known by the id of its connection.

Decides who is heard: parts within limits, keys still on the allow-list. Never blocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import zmq

from helix_mq.transport.api import Delivery, DisconnectHandler, Handler, Parts
from helix_mq.transport.limits import Limits
from helix_mq.transport.monitor import Monitor, SocketEvent, SocketEventKind
from helix_mq.transport.pump import SLICE_MESSAGES, SLICE_S, Pump
from helix_mq.transport.refusals import NOT_ALLOWED
from helix_mq.transport.security import AllowList
from helix_mq.transport.statistics import ChannelStatistics, Counters
from helix_mq.transport.wire import LargeInFlight, Received, large_bytes, receive, try_send

_USER = "User-Id"


@dataclass(slots=True)
class _Peer:
    fd: int
    user: str | None
    large: LargeInFlight


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
        self._fds: dict[int, bytes | None] = {}
        self._leaving: list[bytes] = []
        self._monitor = Monitor(socket, self._on_event, counters.where)
        self._pump = Pump(socket, self._step, counters.where)

    def send(self, peer: bytes, parts: Parts) -> bool:
        """See Listener.send. A peer whose key was taken off the allow-list is unknown."""
        nbytes = self._limits.check_outgoing(parts)
        if self._pump.stopped:
            return False
        known = self._peers.get(peer)
        if known is None or not self._permitted(known.user):
            return False
        large = large_bytes(parts)
        if large and not known.large.has_room(large):
            return False
        try:
            self._socket.send(peer, zmq.NOBLOCK | zmq.SNDMORE)
            try_send(self._socket, parts, known.large)
        except zmq.Again:
            return False
        except zmq.ZMQError as e:
            if e.errno == zmq.EHOSTUNREACH:
                return False
            raise
        finally:
            self._pump.poke()
        self._counters.messages_out += 1
        self._counters.bytes_out += nbytes
        return True

    def statistics(self) -> ChannelStatistics:
        backlog = sum(peer.large.nbytes for peer in self._peers.values())
        return self._counters.statistics(backlog_bytes=backlog)

    async def close(self) -> None:
        if not self._pump.stopped:
            self._pump.stop()
            self._monitor.close()
            self._socket.close()
            self._peers.clear()
            self._fds.clear()

    def _permitted(self, user: str | None) -> bool:
        return self._allow is None or (user is not None and user in self._allow)

    def _step(self) -> bool:
        until = time.perf_counter() + SLICE_S
        for _ in range(SLICE_MESSAGES):
            if self._pump.stopped:
                return False
            try:
                peer = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._deliver(peer, receive(self._socket, self._limits))
            if time.perf_counter() > until:
                return True
        else:
            return True
        # All that the lost peers had sent is delivered by now.
        leaving, self._leaving = self._leaving, []
        for peer in leaving:
            self._forget(peer)
        return False

    def _deliver(self, peer: bytes, received: Received) -> None:
        counters = self._counters
        user: str | None = None
        if self._allow is not None:
            user = _user_of(received.first)
        if peer not in self._peers:
            self._greet(peer, user, received.first)
        if not self._permitted(user):
            counters.drop("revoked", user or "")
            return
        if received.fault:
            counters.drop(received.fault, user or repr(peer))
            return
        counters.messages_in += 1
        counters.bytes_in += received.nbytes
        try:
            self._handler(Delivery(peer, user, received.parts))
        except Exception as e:
            counters.handler_failed(e)

    def _greet(self, peer: bytes, user: str | None, frame: zmq.Frame | None) -> None:
        fd = _fd_of(frame)
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
        self._peers[peer] = _Peer(fd, user, LargeInFlight(self._limits.backlog_bytes))

    def _on_event(self, event: SocketEvent) -> None:
        match event.kind:
            case SocketEventKind.ACCEPTED:
                self._fds[event.fd] = None
            case SocketEventKind.LOST:
                peer = self._fds.pop(event.fd, None)
                if peer is not None:
                    self._leaving.append(peer)
                    self._pump.poke()
            case SocketEventKind.REFUSED:
                # A key that is not allowed is counted where it is judged, with its name.
                if event.refusal is not NOT_ALLOWED:
                    self._counters.handshake_failed(event.refusal)

    def _forget(self, peer: bytes) -> None:
        if self._peers.pop(peer, None) is None or self._on_disconnect is None:
            return
        try:
            self._on_disconnect(peer)
        except Exception as e:
            self._counters.handler_failed(e)


def _user_of(frame: zmq.Frame | None) -> str | None:
    """The key the sender proved to hold; ZeroMQ attaches it to every frame it decrypts."""
    if frame is None:
        return None
    try:
        return str(frame.get(_USER))
    except zmq.ZMQError:
        return None


def _fd_of(frame: zmq.Frame | None) -> int:
    if frame is None:
        return -1
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1
