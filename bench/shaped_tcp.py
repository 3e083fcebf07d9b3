"""A TCP way to a port with a given rate and delay, which can also swallow everything while its
connections stand, as a path on which packets vanish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque

PIECE_BYTES = 4 * 1024
SOCKET_BYTES = 64 * 1024
_LATE_S = 0.005
"""Event loops wake late, by milliseconds on a busy machine, which is not the wire's slowness: one
that has bytes waiting makes up for so much."""
_TURN_S = 0.001
"""Waits shorter than a turn of the loop are not worth one: asyncio's are a millisecond at least."""


class ShapedTcp:
    """Listens on loopback; bytes go on to `port` at `bytes_per_s` at most, and arrive `delay_s`
    after they have left the thin part. The way back has the delay and no limit."""

    def __init__(self, port: int, bytes_per_s: float, delay_s: float) -> None:
        self._port = port
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()

    async def start(self) -> str:
        """The endpoint to connect to instead of the real one."""
        # By its protocol asyncio knows that Nagle's algorithm is to be off. With it, small messages
        # on the way back stand here for 40 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        listener.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=PIECE_BYTES)
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    def swallow(self) -> None:
        """From now on nothing arrives, either way; nothing is closed."""
        self._passes.clear()

    def let_through(self) -> None:
        """What was held up arrives after all, as TCP sends it again."""
        self._passes.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, out = await asyncio.open_connection("127.0.0.1", self._port)
        for reader, writer, rate in ((near, out, self._bytes_per_s), (far, back, 1e12)):
            way = _Way(reader, writer, rate, self._delay_s, self._passes)
            for part in (way.take(), way.deliver()):
                task = asyncio.ensure_future(part)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)


class _Way:
    """One direction of one connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        bytes_per_s: float,
        delay_s: float,
        passes: asyncio.Event,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._passes = passes
        self._on_wire: deque[tuple[float, bytes]] = deque()
        self._more = asyncio.Event()

    async def take(self) -> None:
        loop = asyncio.get_running_loop()
        free_s = loop.time()
        data = b"-"
        while data:
            asked_s = loop.time()
            try:
                data = await self._reader.read(PIECE_BYTES)
            except OSError:
                # Broken: there is no more, as at a good end.
                data = b""
            now_s = loop.time()
            # An empty wire has nothing to make up for.
            late_s = _LATE_S if now_s - asked_s < _TURN_S else 0.0
            free_s = max(now_s - late_s, free_s) + len(data) / self._bytes_per_s
            self._on_wire.append((free_s + self._delay_s, data))
            self._more.set()
            # The thin part itself: this is how long these bytes are in it.
            if free_s - loop.time() > _TURN_S:
                await asyncio.sleep(free_s - loop.time())

    async def deliver(self) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        with contextlib.suppress(OSError):
            while data:
                while not self._on_wire:
                    self._more.clear()
                    await self._more.wait()
                at_s, data = self._on_wire.popleft()
                if at_s - loop.time() > _TURN_S:
                    await asyncio.sleep(at_s - loop.time())
                await self._passes.wait()
                self._writer.write(data)
                await self._writer.drain()
        self._writer.close()
