"""A TCP way to a port that can be shut: connections are taken and nothing comes through, as behind
a firewall that drops packets."""

from __future__ import annotations

import asyncio
import contextlib

PIECE_BYTES = 64 * 1024


class TcpGate:
    """Listens on loopback; passes bytes on to `port` and back while it is open."""

    def __init__(self, port: int, *, is_open: bool) -> None:
        self.passed_bytes = 0
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        if is_open:
            self._open.set()

    async def start(self) -> str:
        """The endpoint to connect to instead of the real one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def shut(self) -> None:
        """Breaks what is connected; what connects from now on gets nowhere."""
        self._open.clear()
        await self._drop()

    def open(self) -> None:
        self._open.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._drop()

    async def _drop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(near, back))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        out: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            far, out = await asyncio.open_connection("127.0.0.1", self._port)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass_on(near, out))
                ways.create_task(self._pass_on(far, back))
        finally:
            for writer in (back, out):
                if writer is not None:
                    writer.close()

    async def before_a_piece(self) -> None:
        """Sub-classes may hold up what has come."""

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                await self.before_a_piece()
                self.passed_bytes += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()
