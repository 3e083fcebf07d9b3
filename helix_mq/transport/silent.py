"""Connections of a bound socket that have not said anything yet: how many, and how much they send.

Whoever connects may be anybody until the handshake is done. ZeroMQ keeps what such a connection
sends as one handshake command, up to the limit that is meant for activations: measured, four
strangers made a socket with keys hold 600 MiB. It has no limit of its own for that, so the kernel's
count of what each has sent is looked at, and those that send too much without a message are cut.
Honest ones say that they are there before anything else (`wire.HERE`), or a first message that is
large and slow would look the same.

Looking costs some 8 us each: many are looked at in turn, so that a flood does not hold up the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable

from helix_mq.transport.cutting import NO_MARK, cut, mark_of
from helix_mq.transport.limits import Limits
from helix_mq.transport.refusals import SILENT, TALKATIVE, Refusal

LOOK_S = 0.1
LOOKS_PER_TURN = 100
HURRY_S = 0.025
"""Between turns where there are more: a round of 1,024 takes 0.3 s, and 3 % of the loop."""
MAX_BYTES = 1024 * 1024
"""A handshake takes less than 1 KiB, what an honest one says then a few bytes."""
MAX_TOTAL_BYTES = 64 * 1024 * 1024

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_RECEIVED = struct.Struct("=Q")
_RECEIVED_AT = 128
"""Of tcpi_bytes_received in Linux's struct tcp_info, since 4.1."""
_INFO_BYTES = _RECEIVED_AT + _RECEIVED.size
_WAITING = struct.Struct("=i")


class SilentConnections:
    """By descriptor, the oldest first. `refused` is told why one was cut."""

    def __init__(self, limits: Limits, refused: Callable[[Refusal], None]) -> None:
        self._limits = limits
        self._refused = refused
        self._marks: dict[int, int] = {}
        self._turns: deque[int] = deque()
        """Those not looked at in this round, the oldest first."""
        self._sent: dict[int, int] = {}
        """Bytes that ZeroMQ had taken from each, as of the last look."""
        self._over: dict[int, float] = {}
        """Those that send too much, and since when they have been seen to."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, fd: int, mark: int) -> None:
        self.pop(fd)
        self._marks[fd] = mark
        if len(self._marks) > self._limits.max_silent:
            self._cut(next(iter(self._marks)), SILENT)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def pop(self, fd: int) -> int | None:
        """It has spoken, or is gone: its mark, None if it was not among them."""
        self._sent.pop(fd, None)
        self._over.pop(fd, None)
        return self._marks.pop(fd, None)

    def close(self) -> None:
        for table in (self._marks, self._sent, self._over):
            table.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for fd in self._turn():
            self._sent[fd] = taken_bytes(fd, self._marks[fd])
        over = {fd for fd, nbytes in self._sent.items() if nbytes > MAX_BYTES}
        over |= self._largest()
        for fd in over:
            # Seen twice: in between, whatever message of theirs ZeroMQ had whole has been read.
            if now_s - self._over.setdefault(fd, now_s) >= 0.9 * LOOK_S:
                self._cut(fd, TALKATIVE)
        for fd in self._over.keys() - over:
            del self._over[fd]
        if self._marks:
            pause_s = HURRY_S if len(self._marks) > LOOKS_PER_TURN else LOOK_S
            self._timer = self._loop.call_later(pause_s, self._look)

    def _turn(self) -> set[int]:
        """Whom to look at now: the next in turn, and whoever is about to be cut."""
        chosen = set(self._over)
        for _ in range(LOOKS_PER_TURN):
            if not self._turns:
                self._turns.extend(self._marks)
                if len(chosen) >= len(self._marks):
                    break
            fd = self._turns.popleft()
            if fd in self._marks:
                chosen.add(fd)
        return chosen

    def _largest(self) -> set[int]:
        """As many as bring all that was sent below MAX_TOTAL_BYTES."""
        total = sum(self._sent.values())
        largest: set[int] = set()
        if total > MAX_TOTAL_BYTES:
            for fd in sorted(self._sent, key=lambda fd: -self._sent[fd]):
                if total <= MAX_TOTAL_BYTES:
                    break
                largest.add(fd)
                total -= self._sent[fd]
        return largest

    def _cut(self, fd: int, why: Refusal) -> None:
        self._refused(why)
        cut(fd, self.pop(fd) or NO_MARK)


def taken_bytes(fd: int, mark: int) -> int:
    """What has been read so far of what a TCP connection has received; 0 where nobody can tell.

    What still waits in the kernel is not counted: it may hold the message that says who it is,
    where ZeroMQ's thread is busy with others.
    """
    if _TCP_INFO is None or mark_of(fd) != mark:
        return 0
    with contextlib.suppress(OSError):
        borrowed = socket.socket(fileno=fd)
        try:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
            waiting = fcntl.ioctl(fd, termios.FIONREAD, bytes(_WAITING.size))
        finally:
            borrowed.detach()
        if len(info) == _INFO_BYTES:
            received = int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0])
            return max(0, received - int(_WAITING.unpack(waiting)[0]))
    return 0
