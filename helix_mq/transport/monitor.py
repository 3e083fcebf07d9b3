"""ZeroMQ's socket events: connections made, lost, and refused in the handshake, in words.

Events arrive in the order in which the I/O thread saw them, but apart from the messages; who needs
them in step with messages drains both.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import zmq

from helix_mq.transport.pump import SLICE_MESSAGES, Pump
from helix_mq.transport.refusals import (
    HUNG_UP,
    MECHANISM,
    NOT_ALLOWED,
    Refusal,
    broken_protocol,
    cannot_check,
)

_EVENT = struct.Struct("=hi")
_numbers = itertools.count()


class SocketEventKind(Enum):
    ACCEPTED = "accepted"
    """A bound socket got a connection, not yet authenticated."""
    READY = "ready"
    """The handshake is done; messages flow."""
    UNBOUND = "unbound"
    """A bound socket's address is free again."""
    LOST = "lost"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class SocketEvent:
    """`fd` is the connection's file descriptor (ACCEPTED, LOST); `refusal` comes with REFUSED."""

    kind: SocketEventKind
    fd: int = -1
    refusal: Refusal = HUNG_UP


_KINDS = {
    zmq.EVENT_ACCEPTED: SocketEventKind.ACCEPTED,
    zmq.EVENT_CLOSED: SocketEventKind.UNBOUND,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: SocketEventKind.READY,
    zmq.EVENT_DISCONNECTED: SocketEventKind.LOST,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: SocketEventKind.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: SocketEventKind.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: SocketEventKind.REFUSED,
}
_EVENTS = sum(_KINDS)


def refusal(event: int, value: int) -> Refusal:
    """What a failed handshake means; `value` is what ZeroMQ gives with the event."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return NOT_ALLOWED if value == 400 else cannot_check(value)
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return MECHANISM
        return broken_protocol(value)
    return HUNG_UP


class Monitor:
    """Watches a socket that is not yet bound or connected, and hands its events to `on_event`."""

    def __init__(
        self, socket: zmq.Socket[bytes], on_event: Callable[[SocketEvent], None], where: str
    ) -> None:
        self._watched = socket
        self._on_event = on_event
        address = f"inproc://helix-mq.monitor.{next(_numbers)}"
        socket.monitor(address, _EVENTS)
        self._socket: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
        # With a bound here, a flood of connections would make the I/O thread wait for us.
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._pump = Pump(self._socket, self.drain, where)

    def drain(self) -> bool:
        """Handles waiting events, a slice of them at most; True when more may wait."""
        for _ in range(SLICE_MESSAGES):
            if self._pump.stopped:
                return False
            try:
                head, _endpoint = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            event, value = _EVENT.unpack(head)
            kind = _KINDS.get(event)
            if kind is SocketEventKind.REFUSED:
                self._on_event(SocketEvent(kind, refusal=refusal(event, value)))
            elif kind is not None:
                self._on_event(SocketEvent(kind, fd=value))
        return True

    def close(self) -> None:
        """No event is handed out after this. Call before the watched socket closes."""
        if not self._pump.stopped:
            self._pump.stop()
            self._watched.disable_monitor()
            self._socket.close()
