"""Links that are not there: what waits for them is given up after a while, not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from helix_mq.clock import VirtualClock
from helix_mq.dataplane import DataPlane, PlaneHandlers, PlaneIdentity
from helix_mq.outlink import OutLink, OutLinkStatistics, PeerAddress
from tests.helix_mq.plane_ends import WAIT_S, Net, frame


@dataclass
class Sender:
    """A plane on a virtual clock, whose peer `b` has an address and is not there."""

    plane: DataPlane
    clock: VirtualClock
    endpoint: str
    lost: list[str] = field(default_factory=list)
    credited: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, request: int) -> None:
        header, buffer = frame(request)
        assert self.plane.send("b", header, (buffer,))

    @property
    def link(self) -> OutLinkStatistics:
        (only,) = self.plane.statistics()
        return only


@asynccontextmanager
async def sender(net: Net) -> AsyncIterator[Sender]:
    gone = await net.bound("b")
    await gone.plane.close()
    clock, lost, credited = VirtualClock(), list[str](), asyncio.Event()
    plane = DataPlane(
        PlaneIdentity("a", 1),
        PlaneHandlers(lambda *_: None, lost.append, credited.set),
        net.transport,
        clock,
        lost_after_s=3.0,
    )
    try:
        await plane.set_peers({"b": PeerAddress("b", 1, gone.endpoint)})
        yield Sender(plane, clock, gone.endpoint, lost, credited)
    finally:
        await plane.close()


async def test_frames_for_a_peer_out_of_reach_are_given_up_and_the_link_works_later(
    net: Net,
) -> None:
    async with sender(net) as a:
        a.clock.advance(3.5)
        a.plane.refresh()
        assert a.lost == [], "nothing waits for it"
        a.send(1)
        assert a.link.down_s == 3.5
        a.plane.refresh()
        assert a.lost == ["b"]
        assert a.link.backlog_bytes == 0
        a.plane.refresh()
        assert a.lost == ["b"], "once for what waited then"
        b = net.end("b")
        await b.bind(a.endpoint)
        async with asyncio.timeout(WAIT_S):
            await a.credited.wait()
        a.send(2)
        await b.until(lambda: b.requests == [2])
        a.clock.advance(100.0)
        a.plane.refresh()
        assert (a.lost, a.link.down_s) == (["b"], 0.0)


async def test_what_waits_for_a_short_time_arrives_when_the_link_is_there(net: Net) -> None:
    async with sender(net) as a:
        a.send(1)
        a.clock.advance(3.0)
        a.plane.refresh()
        assert a.lost == []
        b = net.end("b")
        await b.bind(a.endpoint)
        await b.until(lambda: b.requests == [1])


def test_the_time_down_counts_from_the_last_connection() -> None:
    clock = VirtualClock()
    link = OutLink(PeerAddress("b", 1, "mem://b"), clock, 1 << 20, [].append)
    clock.advance(2.0)
    assert link.down_s == 2.0
    link.connected = True
    clock.advance(5.0)
    assert link.down_s == 0.0
    for _ in range(2):
        # Said again with every attempt to connect that fails.
        link.connected = False
        clock.advance(1.0)
    assert link.down_s == 2.0
    assert not link.hopeless(1.0), "nothing waits"
