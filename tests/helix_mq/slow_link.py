"""A TCP link of a given rate: what comes in waits in its small buffers, as on a thin wire."""

from __future__ import annotations

import asyncio
import contextlib
import socket

PIECE_BYTES = 8 * 1024
SOCKET_BYTES = 64 * 1024


class SlowLink:
    """Listens on loopback and passes bytes on to `port`, at most `bytes_per_s` towards it."""

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self._port = port
        self._bytes_per_s = bytes_per_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """The endpoint to connect to instead of the real one."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        listener.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=PIECE_BYTES)
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, out = await asyncio.open_connection("127.0.0.1", self._port)
        ways = ((near, out, self._bytes_per_s), (far, back, 1e12))
        for reader, writer, rate in ways:
            task = asyncio.ensure_future(self._pass_on(reader, writer, rate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float
    ) -> None:
        free_s = asyncio.get_running_loop().time()
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                now = asyncio.get_running_loop().time()
                free_s = max(now, free_s) + len(data) / rate
                # The wire itself: this is how long these bytes are on it.
                await asyncio.sleep(free_s - now)
                writer.write(data)
                await writer.drain()
        writer.close()
