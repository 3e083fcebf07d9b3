"""A recorded CURVE session, said again: to a port as it was, and in step with its answers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from helix_mq.client import Client
from router.clients import ClientSockets
from tests.journey.test_curve import PLACEMENT, secured


class Recorder:
    """A TCP proxy that keeps what goes towards the server, piece by piece."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.pieces: list[bytes] = []
        self.port = 0

    async def __aenter__(self) -> Recorder:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, out = await asyncio.open_connection("127.0.0.1", self._port)
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter, list[bytes]]
        there = near, out, self.pieces
        for reader, writer, kept in (there, (far, back, [])):
            self._tasks.add(asyncio.create_task(self._carry(reader, writer, kept)))

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                kept.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()


async def replay(port: int, pieces: list[bytes], *, in_step: bool) -> None:
    """All at once, or each piece after an answer to the one before, as the client sent them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError):
        async with asyncio.timeout(240):
            for piece in pieces:
                writer.write(piece)
                if in_step and not await reader.read(65536):
                    break
            while await reader.read(65536):
                pass
    writer.transport.abort()


async def test_a_recorded_session_is_worth_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    """Each session has keys of its own: what one has said opens no other."""
    nodes = {name: name for name in PLACEMENT}
    async with secured(tiny_folder, tmp_path, nodes, PLACEMENT, ("alice",)) as c:
        await c.ready()
        sockets = ClientSockets(c.app, c.transport, "tcp://127.0.0.1:0", c.app.security)
        await sockets.start()
        port = int(sockets.endpoint.rpartition(":")[2])
        server, key = c.app.security.public_key, tmp_path / "alice.key"
        async with Recorder(port) as recorder:
            endpoint = f"tcp://127.0.0.1:{recorder.port}"
            async with Client(endpoint, key=key, server_key=server) as alice:
                said = await alice.generate("hello", max_tokens=5, temperature=0, ignore_eos=True)
        assert sum(map(len, recorder.pieces)) > 500
        listener = sockets._listener
        assert listener is not None
        heard, submitted = listener.statistics().messages_in, c.app._highest_request
        for in_step in (False, True):
            await replay(port, recorder.pieces, in_step=in_step)
        failed = listener.statistics().handshakes_failed
        assert sum(failed.values()) == 2, failed
        assert listener.statistics().messages_in == heard
        assert c.app._highest_request == submitted
        async with Client(sockets.endpoint, key=key, server_key=server) as alice:
            again = await alice.generate("hello", max_tokens=5, temperature=0, ignore_eos=True)
        assert again.token_ids == said.token_ids
        await sockets.close()
        await c.quiet()
