"""Gates over real sockets: open, cut, frozen, mended, each for one source or for all."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvloop

from bench.chaos.gates import Gate

WAIT_S = 240.0


@dataclass
class Way:
    """An echo behind a gate; connections are named in the order in which they are made."""

    gate: Gate
    names: list[str] = field(default_factory=list)

    async def connect(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.names.append(name)
        port = int(self.gate.endpoint.rsplit(":", 1)[1])
        return await asyncio.open_connection("127.0.0.1", port)


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    names: list[str] = []
    gate = Gate(port, lambda _: names.pop(0))
    await gate.start()
    try:
        async with asyncio.timeout(WAIT_S):
            yield Way(gate, names)
    finally:
        await gate.close()
        server.close()


async def said(ends: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes) -> bytes:
    ends[1].write(text)
    return await ends[0].readexactly(len(text))


async def broken(ends: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    try:
        return await ends[0].read(1) == b""
    except ConnectionError:
        return True


async def test_a_cut_breaks_one_source_and_holds_it_off_until_mended() -> None:
    async with way() as w:
        a, b = await w.connect("a"), await w.connect("b")
        assert await said(a, b"1") == b"1"
        assert await said(b, b"2") == b"2"
        await w.gate.cut("a")
        assert await broken(a)
        assert await said(b, b"3") == b"3"
        again = await w.connect("a")
        again[1].write(b"4")
        assert await said(b, b"5") == b"5"
        reading = asyncio.ensure_future(again[0].readexactly(1))
        assert not reading.done()
        await w.gate.heal("a")
        assert await reading == b"4"


async def test_what_is_frozen_arrives_when_it_thaws() -> None:
    async with way() as w:
        a = await w.connect("a")
        assert await said(a, b"1") == b"1"
        w.gate.freeze()
        a[1].write(b"2")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await a[0].readexactly(1)
        await w.gate.heal()
        assert await a[0].readexactly(1) == b"2"


async def test_a_break_lets_connections_be_made_anew_at_once() -> None:
    async with way() as w:
        a = await w.connect("a")
        assert await said(a, b"1") == b"1"
        await w.gate.break_once()
        assert await broken(a)
        assert await said(await w.connect("a"), b"2") == b"2"


async def test_a_port_that_nobody_listens_on_breaks_who_connects() -> None:
    async with way() as w:
        dead = Gate(1, lambda _: "a")
        await dead.start()
        ends = await asyncio.open_connection("127.0.0.1", int(dead.endpoint.rsplit(":", 1)[1]))
        assert await broken(ends)
        await dead.close()
        assert await said(await w.connect("a"), b"1") == b"1"


def test_who_is_gone_before_it_is_taken_in_harms_nobody() -> None:
    """With uvloop, which then knows no name of the peer, as in a run."""
    failures: list[dict[str, object]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: failures.append(about))
        async with way() as w:
            with socket.socket() as gone:
                # The kernel takes it in; reset before this loop can.
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                gone.connect(("127.0.0.1", int(w.gate.endpoint.rsplit(":", 1)[1])))
            assert await said(await w.connect("a"), b"1") == b"1"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())
    assert failures == []
