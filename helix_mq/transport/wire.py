"""Moving one multipart message through a zmq socket: the hot path, without a copy of what is large.

Never blocks. Every received part is a view of its zmq frame: measured, that is cheaper than a copy
at every size from 100 bytes up, so nothing is copied on receipt.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from helix_mq.transport.backlog import COPY_BELOW_BYTES, Buffer
from helix_mq.transport.limits import Limits

RawSend = Callable[..., zmq.MessageTracker | None]

MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
NOBLOCK = int(zmq.NOBLOCK)

HERE = b""
"""What a connection says first, by itself. A listener hears nothing of a message until it is whole,
and cannot tell a large first one that is slow to come from a stranger's endless handshake."""


def raw_send(socket: zmq.Socket[bytes]) -> RawSend:
    """The socket's own `send` below pyzmq's Python wrapper, which doubles its 0.7 µs."""
    send: RawSend = super(zmq.Socket, socket).send
    return send


class LargeInFlight:
    """Bytes of uncopied parts that ZeroMQ still reads from our memory, bounded."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._sent: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._bytes = 0

    def has_room(self, nbytes: int) -> bool:
        """Whether `nbytes` more fit; a single message larger than the limit fits when alone."""
        if nbytes == 0 or self._bytes + nbytes <= self._limit_bytes:
            return True
        return self.nbytes + nbytes <= self._limit_bytes or not self._sent

    def add(self, tracker: zmq.MessageTracker, nbytes: int) -> None:
        if len(self._sent) % 64 == 63:
            self._let_go()
        self._sent.append((tracker, nbytes))
        self._bytes += nbytes

    @property
    def nbytes(self) -> int:
        self._let_go()
        return self._bytes

    def _let_go(self) -> None:
        while self._sent and self._sent[0][0].done:
            self._bytes -= self._sent.popleft()[1]


def try_send(send: RawSend, parts: Sequence[Buffer], large: int, in_flight: LargeInFlight) -> None:
    """Sends a whole message, or raises zmq.Again (no room) and sends nothing of it.

    ZeroMQ decides at the first part of a message whether there is room; the rest follows always.
    """
    if large == 0:
        for part in parts[:-1]:
            send(part, MORE)
        send(parts[-1], NOBLOCK)
        return
    last = len(parts) - 1
    for i, part in enumerate(parts):
        flags = NOBLOCK if i == last else MORE
        nbytes = part.nbytes if type(part) is memoryview else len(part)
        if nbytes < COPY_BELOW_BYTES:
            send(part, flags)
        else:
            # pyzmq keeps the object alive but lets go of its buffer; a view keeps a bytearray from
            # being resized, and so its memory in place, while ZeroMQ reads it.
            tracker = send(memoryview(part), flags, copy=False, track=True)
            assert tracker is not None
            in_flight.add(tracker, nbytes)


def say_here(send: RawSend) -> None:
    """Where there is no room for it, whatever comes first does as well."""
    with contextlib.suppress(zmq.Again):
        send(HERE, NOBLOCK)


def says_here(parts: Sequence[memoryview]) -> bool:
    """Whether a connection's first message is only the sign that it is there."""
    return len(parts) == 1 and not len(parts[0])


def receive(
    recv: Callable[..., zmq.Frame], limits: Limits
) -> tuple[list[memoryview], int, zmq.Frame, str]:
    """The rest of the message at hand: its parts, bytes in all, first frame, and what is wrong.

    With a fault (`too_large`, `too_many_parts`) the parts are read away and the list is empty.
    Raises zmq.Again when there is no message.
    """
    first = recv(NOBLOCK, False, False)
    view = first.buffer
    nbytes = view.nbytes
    parts = [view]
    more = first.more
    while more:
        frame = recv(NOBLOCK, False, False)
        view = frame.buffer
        nbytes += view.nbytes
        if nbytes <= limits.max_message_bytes and len(parts) <= limits.max_parts:
            parts.append(view)
        more = frame.more
    if nbytes > limits.max_message_bytes:
        return [], nbytes, first, "too_large"
    if len(parts) > limits.max_parts:
        return [], nbytes, first, "too_many_parts"
    return parts, nbytes, first, ""
