"""Ways through which processes reach each other, to be cut: TCP relays on loopback.

A Gate stands before one port and knows its connections by the process at their other end. A way
can be *cut* (its connections break, new ones get nowhere, as when a machine refuses) or *frozen*
(bytes are taken and nothing comes through, as when packets are dropped: nobody is told).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

PIECE_BYTES = 64 * 1024
EVERYBODY = "*"

Names = Callable[[int], str]
"""Which process has this local port; `?` where nobody does (any more)."""


@dataclass(slots=True, eq=False)
class _Connection:
    source: str
    task: asyncio.Task[None]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)


class Gate:
    """Listens on loopback and relays to `port`, which may be unbound for a time."""

    def __init__(self, port: int, names: Names) -> None:
        self.endpoint = f"tcp://127.0.0.1:{port}"
        """Where to connect: the port itself until the gate stands before it."""
        self._port = port
        self._names = names
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._cut: set[str] = set()
        self._frozen: set[str] = set()
        self._changed = asyncio.Condition()

    async def start(self) -> str:
        """Gives the endpoint to connect to instead of the real one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self.endpoint

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._drop(EVERYBODY)

    async def cut(self, source: str = EVERYBODY) -> None:
        """Breaks what comes from `source`, and lets nothing of it through until `heal`."""
        self._cut.add(source)
        await self._drop(source)

    def freeze(self, source: str = EVERYBODY) -> None:
        self._frozen.add(source)

    async def heal(self, source: str = EVERYBODY) -> None:
        """Mends what was done to `source`; for EVERYBODY, everything."""
        if source == EVERYBODY:
            self._cut.clear()
            self._frozen.clear()
        self._cut.discard(source)
        self._frozen.discard(source)
        async with self._changed:
            self._changed.notify_all()

    async def break_once(self, source: str = EVERYBODY) -> None:
        """Breaks connections that may be made anew at once."""
        await self._drop(source)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def _shut(self, source: str, ways: set[str]) -> bool:
        return source in ways or EVERYBODY in ways

    async def _drop(self, source: str) -> None:
        dropped = [c for c in self._connections if source in (EVERYBODY, c.source)]
        for connection in dropped:
            connection.task.cancel()
        await asyncio.gather(*(c.task for c in dropped), return_exceptions=True)

    def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        peer = back.get_extra_info("peername")
        if peer is None:
            # It was gone again before it was taken in.
            back.transport.abort()
            return
        source = self._names(peer[1])
        task = asyncio.ensure_future(self._serve(source, near, back))
        connection = _Connection(source, task)
        self._connections.add(connection)
        task.add_done_callback(lambda _: self._connections.discard(connection))

    async def _serve(
        self, source: str, near: asyncio.StreamReader, back: asyncio.StreamWriter
    ) -> None:
        out: asyncio.StreamWriter | None = None
        try:
            await self._until_open(source, self._cut)
            with contextlib.suppress(OSError):
                far, out = await asyncio.open_connection("127.0.0.1", self._port)
                # When one way ends, so does the other: TCP half-open states are no fault of ours.
                ways = [
                    asyncio.ensure_future(self._relay(source, near, out)),
                    asyncio.ensure_future(self._relay(source, far, back)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for writer in (back, out):
                if writer is not None:
                    writer.transport.abort()

    async def _relay(
        self, source: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                await self._until_open(source, self._frozen)
                writer.write(data)
                await writer.drain()

    async def _until_open(self, source: str, ways: set[str]) -> None:
        if self._shut(source, ways):
            async with self._changed:
                await self._changed.wait_for(lambda: not self._shut(source, ways))
