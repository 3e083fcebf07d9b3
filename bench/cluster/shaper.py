"""A process that stands between machines and delays and paces what they send each other.

    python -m bench.cluster.shaper SPEC.json

One TCP port per directed way; a connection through it uses that way forth and the opposite one
back. A loop of its own on select: asyncio's timers are a millisecond's at best, and links within a
region take about as long. Ends on SIGTERM and writes what each way carried.
"""

from __future__ import annotations

import heapq
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from bench.cluster.ways import Nic, ShaperLog, ShaperSpec, Way, WayLog, WaySpec

READ_BYTES: Final = 64 * 1024
AHEAD_S: Final = 0.004
"""A way that is busy for longer takes no more: what waits for it waits at its sender."""
SOCKET_BYTES: Final = 256 * 1024
"""Of what a receiving socket may hold before its sender notices; as little as does not limit."""
MAX_HELD_BYTES: Final = 64 * 1024 * 1024
"""On one connection, for a receiver that does not read."""


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of one connection. `held`: on the way; `late`: arrived, not taken yet."""

    reads: socket.socket
    writes: socket.socket
    way: Way
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    late: deque[memoryview] = field(default_factory=deque)
    held_bytes: int = 0
    paused: bool = False
    back: Pipe | None = None
    """The other direction."""
    closed: bool = False


class Shaper:
    """`run` until `stop` is called from a signal handler."""

    def __init__(self, spec: ShaperSpec) -> None:
        self._spec = spec
        nics = {name: Nic(1 / out, 1 / into) for name, (out, into) in spec.nics.items()}
        self._ways: Mapping[tuple[str, str], Way] = {
            (w.source, w.target): Way(
                nics.setdefault(w.source, Nic()),
                nics.setdefault(w.target, Nic()),
                1 / w.bytes_per_s,
                w.latency_s,
            )
            for w in spec.ways
        }
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, WaySpec]] = {}
        self._pipes: dict[int, Pipe] = {}
        """By the descriptor they read from."""
        self._due: list[tuple[float, int, Pipe]] = []
        self._resume: list[tuple[float, int, Pipe]] = []
        self._number = 0
        self._stopped = False
        self._late_s = self._sum_late_s = 0.0
        self._deliveries = 0

    def listen(self) -> None:
        """Binds all ports; raises OSError for one that is taken."""
        for way in self._spec.ways:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
            listener.bind(("127.0.0.1", way.listen_port))
            listener.listen()
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener, way
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            for descriptor, events in self._ready():
                self._event(descriptor, events)
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                self._deliver(heapq.heappop(self._due)[2], now_s)
            while self._resume and self._resume[0][0] <= now_s:
                self._read_again(heapq.heappop(self._resume)[2])

    def close(self) -> None:
        """After `run`: every connection and port."""
        for pipe in list(self._pipes.values()):
            self._close(pipe)
        for listener, _ in self._listeners.values():
            listener.close()
        self._epoll.close()

    def log(self) -> ShaperLog:
        ways = tuple(
            WayLog(
                s.source,
                s.target,
                s.bytes_per_s,
                dict(self._ways[s.source, s.target].bytes_by_part),
            )
            for s in self._spec.ways
        )
        mean_s = self._sum_late_s / self._deliveries if self._deliveries else 0.0
        return ShaperLog(ways, self._late_s, mean_s)

    def _ready(self) -> list[tuple[int, int]]:
        """Waits for a socket, or for the next time at which something is to be done. The wait is
        select's, on the epoll itself: its own counts in milliseconds."""
        next_s = min((line[0][0] for line in (self._due, self._resume) if line), default=None)
        wait_s = 0.2 if next_s is None else min(0.2, max(0.0, next_s - time.monotonic()))
        select.select([self._epoll], [], [], wait_s)
        return self._epoll.poll(0)

    def _event(self, descriptor: int, events: int) -> None:
        if descriptor in self._listeners:
            self._accept(*self._listeners[descriptor])
            return
        pipe = self._pipes.get(descriptor)
        if pipe is None:
            return
        if events & select.EPOLLOUT and pipe.back is not None:
            self._flush(pipe.back)
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not pipe.closed:
            self._read(pipe)

    def _accept(self, listener: socket.socket, spec: WaySpec) -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = socket.create_connection(("127.0.0.1", spec.target_port), timeout=5)
        except OSError:
            near.close()
            return
        there = self._ways[spec.source, spec.target]
        # Without a link back, acknowledgements must still come back somehow.
        back = self._ways.get((spec.target, spec.source), there)
        forth, home = Pipe(near, far, there), Pipe(far, near, back)
        forth.back, home.back = home, forth
        for pipe in (forth, home):
            pipe.reads.setblocking(False)
            pipe.reads.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pipes[pipe.reads.fileno()] = pipe
            self._epoll.register(pipe.reads.fileno(), select.EPOLLIN)

    def _read(self, pipe: Pipe) -> None:
        now_s = time.monotonic()
        try:
            data = pipe.reads.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(pipe)
            return
        at_s = pipe.way.put(now_s, len(data))
        self._number += 1
        if not pipe.held:
            heapq.heappush(self._due, (at_s, self._number, pipe))
        pipe.held.append((at_s, data))
        pipe.held_bytes += len(data)
        if pipe.way.free_s - now_s > AHEAD_S or pipe.held_bytes > MAX_HELD_BYTES:
            pipe.paused = True
            self._watch(pipe)
            self._number += 1
            until_s = max(pipe.way.free_s - AHEAD_S / 2, now_s + AHEAD_S / 2)
            heapq.heappush(self._resume, (until_s, self._number, pipe))

    def _read_again(self, pipe: Pipe) -> None:
        if pipe.closed:
            return
        pipe.paused = False
        self._watch(pipe)

    def _deliver(self, pipe: Pipe, now_s: float) -> None:
        """What has arrived goes out; the pipe comes back for what has not."""
        while pipe.held and pipe.held[0][0] <= now_s:
            at_s, data = pipe.held.popleft()
            self._late_s = max(self._late_s, now_s - at_s)
            self._sum_late_s += now_s - at_s
            self._deliveries += 1
            pipe.late.append(memoryview(data))
        if pipe.held and not pipe.closed:
            self._number += 1
            heapq.heappush(self._due, (pipe.held[0][0], self._number, pipe))
        self._flush(pipe)

    def _flush(self, pipe: Pipe) -> None:
        if pipe.closed:
            return
        try:
            while pipe.late:
                sent = pipe.writes.send(pipe.late[0])
                pipe.held_bytes -= sent
                if sent < len(pipe.late[0]):
                    pipe.late[0] = pipe.late[0][sent:]
                else:
                    pipe.late.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._close(pipe)
            return
        if pipe.back is not None:
            # The socket that this one writes to is the one that the other reads from.
            self._watch(pipe.back)

    def _watch(self, pipe: Pipe) -> None:
        """What to be told of the socket that `pipe` reads from."""
        if pipe.closed:
            return
        waits = pipe.back is not None and bool(pipe.back.late)
        mask = (0 if pipe.paused else select.EPOLLIN) | (select.EPOLLOUT if waits else 0)
        self._epoll.modify(pipe.reads.fileno(), mask)

    def _close(self, pipe: Pipe) -> None:
        """Both directions end: half-open connections are no fault that is emulated here."""
        for way in (pipe, pipe.back):
            if way is not None and not way.closed:
                way.closed = True
                self._epoll.unregister(way.reads.fileno())
                self._pipes.pop(way.reads.fileno(), None)
        pipe.reads.close()
        pipe.writes.close()


def main() -> None:
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ShaperSpec)
    shaper = Shaper(spec)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: shaper.stop())
    shaper.listen()
    print("listening", flush=True)
    shaper.run()
    shaper.close()
    Path(spec.log).write_bytes(msgspec.json.encode(shaper.log()))


if __name__ == "__main__":
    main()
