"""Moving one multipart message through a zmq socket: the hot path, without a copy of what is large.

Never blocks. Every received part is a view of its zmq frame: measured, that is cheaper than a copy
at every size from 100 bytes up, so nothing is copied on receipt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import zmq

from helix_mq.transport.limits import Limits
from helix_mq.transport.options import COPY_BELOW_BYTES

Buffer = bytes | bytearray | memoryview
_MORE = zmq.NOBLOCK | zmq.SNDMORE


class LargeInFlight:
    """Bytes of large messages that ZeroMQ still reads from our memory, bounded."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._sent: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._bytes = 0

    def has_room(self, nbytes: int) -> bool:
        """Whether `nbytes` more fit; a single message larger than the limit fits when alone."""
        if self._bytes + nbytes > self._limit_bytes:
            while self._sent and self._sent[0][0].done:
                self._bytes -= self._sent.popleft()[1]
        return not self._sent or self._bytes + nbytes <= self._limit_bytes

    def add(self, tracker: zmq.MessageTracker, nbytes: int) -> None:
        self._sent.append((tracker, nbytes))
        self._bytes += nbytes

    @property
    def nbytes(self) -> int:
        while self._sent and self._sent[0][0].done:
            self._bytes -= self._sent.popleft()[1]
        return self._bytes


def try_send(socket: zmq.Socket[bytes], parts: Sequence[Buffer], large: LargeInFlight) -> None:
    """Sends a whole message, or raises zmq.Again (no room) and sends nothing of it.

    ZeroMQ decides at the first part of a message whether there is room; the rest follows always.
    """
    last = len(parts) - 1
    for i, part in enumerate(parts):
        flags = zmq.NOBLOCK if i == last else _MORE
        nbytes = part.nbytes if isinstance(part, memoryview) else len(part)
        if nbytes < COPY_BELOW_BYTES:
            socket.send(part, flags)
        else:
            tracker = socket.send(part, flags, copy=False, track=True)
            large.add(tracker, nbytes)


def large_bytes(parts: Sequence[Buffer]) -> int:
    """Bytes of the parts that go without a copy."""
    total = 0
    for part in parts:
        nbytes = part.nbytes if isinstance(part, memoryview) else len(part)
        if nbytes >= COPY_BELOW_BYTES:
            total += nbytes
    return total


class Received:
    """What `receive` reads a message into: views, bytes in all, and its first frame.

    `fault` is empty, or why the message must be dropped; the parts beyond a limit are read away.
    """

    __slots__ = ("fault", "first", "nbytes", "parts")

    def __init__(self) -> None:
        self.parts: list[memoryview] = []
        self.nbytes = 0
        self.fault = ""
        self.first: zmq.Frame | None = None


def receive(socket: zmq.Socket[bytes], limits: Limits) -> Received:
    """The rest of the message at hand. zmq.Again when there is none."""
    received = Received()
    parts = received.parts
    nbytes = 0
    recv = socket.recv
    while True:
        frame = recv(zmq.NOBLOCK, False, False)
        nbytes += len(frame)
        if not parts:
            received.first = frame
        if nbytes > limits.max_message_bytes:
            received.fault = "too_large"
        elif len(parts) == limits.max_parts:
            received.fault = "too_many_parts"
        else:
            parts.append(frame.buffer)
        if received.fault:
            parts.clear()
        if not frame.more:
            received.nbytes = nbytes
            return received
