"""The shaped way ends with its connection, however that ends."""

from __future__ import annotations

import asyncio
import socket
import struct

from bench.shaped_tcp import ShapedTcp


async def test_a_connection_that_is_reset_leaves_nothing_running() -> None:
    over = asyncio.Event()

    async def far_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        over.set()

    server = await asyncio.start_server(far_end, "127.0.0.1", 0)
    way = ShapedTcp(server.sockets[0].getsockname()[1], 1e9, 0.0)
    port = int((await way.start()).rpartition(":")[2])
    before = asyncio.all_tasks()
    near = socket.create_connection(("127.0.0.1", port))
    near.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(near, b"some")
    # Closed at once and with a reset, as when a process is killed with data on its way to it.
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()
    async with asyncio.timeout(240):
        await over.wait()
        await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
    await way.close()
    server.close()
