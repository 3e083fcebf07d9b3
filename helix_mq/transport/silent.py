"""Connections of a bound socket that have not said anything yet: how many, and how much they send.

Whoever connects may be anybody until the handshake is done. ZeroMQ keeps what such a connection
sends as one handshake command, up to the limit that is meant for activations: measured, four
strangers made a socket with keys hold 600 MiB. It has no limit of its own for that, so the kernel's
count of what each has sent is looked at, and those that send too much without a message are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from helix_mq.transport.cutting import cut, mark_of
from helix_mq.transport.limits import Limits
from helix_mq.transport.refusals import SILENT, TALKATIVE, Refusal

LOOK_S = 0.1
MAX_BYTES = 1024 * 1024
"""A handshake takes less than 1 KiB. What follows it at once is read within a look, or nearly."""
MAX_TOTAL_BYTES = 64 * 1024 * 1024

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_RECEIVED = struct.Struct("=Q")
_RECEIVED_AT = 128
"""Of tcpi_bytes_received in Linux's struct tcp_info, since 4.1."""
_INFO_BYTES = _RECEIVED_AT + _RECEIVED.size


class SilentConnections:
    """By descriptor, the oldest first. `refused` is told why one was cut."""

    def __init__(self, limits: Limits, refused: Callable[[Refusal], None]) -> None:
        self._limits = limits
        self._refused = refused
        self._marks: dict[int, int] = {}
        self._over: frozenset[int] = frozenset()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, fd: int) -> None:
        self._marks.pop(fd, None)
        self._marks[fd] = mark_of(fd)
        if len(self._marks) > self._limits.max_silent:
            self._cut(next(iter(self._marks)), SILENT)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def pop(self, fd: int) -> int | None:
        """It has spoken, or is gone: its mark, None if it was not among them."""
        return self._marks.pop(fd, None)

    def close(self) -> None:
        self._marks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        sent = {fd: received_bytes(fd, mark) for fd, mark in self._marks.items()}
        over = {fd for fd, nbytes in sent.items() if nbytes > MAX_BYTES}
        total = sum(sent.values())
        for fd in sorted(sent, key=lambda fd: -sent[fd]):
            if total <= MAX_TOTAL_BYTES:
                break
            over.add(fd)
            total -= sent[fd]
        # Seen twice: in between, whatever message of theirs was whole has been read.
        for fd in over & self._over:
            self._cut(fd, TALKATIVE)
        self._over = frozenset(over & self._marks.keys())
        if self._marks:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _cut(self, fd: int, why: Refusal) -> None:
        self._refused(why)
        cut(fd, self._marks.pop(fd))


def received_bytes(fd: int, mark: int) -> int:
    """What a TCP connection has received so far; 0 where nobody can tell."""
    if _TCP_INFO is None or mark_of(fd) != mark:
        return 0
    with contextlib.suppress(OSError):
        borrowed = socket.socket(fileno=fd)
        try:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
        finally:
            borrowed.detach()
        if len(info) == _INFO_BYTES:
            return int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0])
    return 0
