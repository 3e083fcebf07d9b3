"""How large the pieces are in which a prompt's rows leave on a link whose speed is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helix_mq.clock import VirtualClock
from helix_mq.frames import Buffer, frame_bytes, pack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.link_probe import HEADER_BYTES
from helix_mq.messages.data import SAMPLE, FrameHeader, Grant, Row
from helix_mq.outlink import OutLink, PeerAddress
from helix_mq.transport import ChannelStatistics, Parts
from tests.helix_mq.turns import Turns

WINDOW = 64 << 20
WIDTH = 1024
ROUTE = pack_route(Route((Hop(NodeId("a"), LayerRange(0, 1)), Hop(NodeId("b"), LayerRange(1, 2)))))


@dataclass
class Wire(Turns):
    """A receiver at the end of a wire of a given rate, who acknowledges each message when its last
    byte is there."""

    clock: VirtualClock
    bytes_per_s: float
    trip_s: float
    sent: list[int] = field(default_factory=list)

    def send(self, parts: Parts) -> bool:
        self.sent.append(frame_bytes(list(parts)))
        return True

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, 0, len(self.sent), sum(self.sent), {}, {}, 0, 0, 0, 0)

    async def close(self) -> None:
        """Nothing is open."""

    def deliver(self, link: OutLink, received: int) -> int:
        """Carries what has been sent; what the receiver has in all."""
        self.turn()
        waiting, self.sent = self.sent, []
        self.clock.advance(self.trip_s)
        for nbytes in waiting:
            self.clock.advance(nbytes / self.bytes_per_s)
            # What only asks for a sign of life is not counted.
            if nbytes > HEADER_BYTES:
                received += nbytes
                link.granted(Grant("b", 1, received + WINDOW, received))
        return received


def rows(tokens: int, position: int = 0, request: int = 1) -> tuple[FrameHeader, list[Buffer]]:
    row = Row(request, 0, position, tokens, 0, 1, SAMPLE, 7)
    values = np.zeros(tokens * WIDTH, np.float32)
    return FrameHeader(1, "a", "float32", WIDTH, (row,), (ROUTE,)), [values.data.cast("B")]


def measured(clock: VirtualClock) -> tuple[OutLink, Wire, int]:
    """A fast link that probes have measured, and that has had few frames since; and what its
    receiver has."""
    wire = Wire(clock, bytes_per_s=1e8, trip_s=0.002)
    link = OutLink(PeerAddress("b", 1, "mem://b"), clock, WINDOW, wire.soon)
    link.connection, link.connected = wire, True
    link.begin(1)
    received = wire.deliver(link, 0)
    link.granted(Grant("b", 1, WINDOW, 0))
    for _ in range(30):
        clock.advance(1.0)
        link.probe()
        received = wire.deliver(link, received)
        while wire.sent:
            received = wire.deliver(link, received)
    assert link.statistics().probed_bytes_per_s > 5e7
    for position in range(40):
        clock.advance(0.5)
        link.send(*rows(1, 100 + position))
        received = wire.deliver(link, received)
    assert link.statistics().bytes_per_s < 2e7
    return link, wire, received


def test_few_small_frames_do_not_make_a_fast_links_pieces_small() -> None:
    """One decode per round trip looks like 4 KiB in 2 ms; the probes know better. The receiver of
    small pieces takes a step over its weights for each."""
    link, wire, _ = measured(VirtualClock())
    link.send(*rows(128))
    assert len(wire.sent) == 1


def test_large_pieces_go_while_decodes_are_under_way_all_the_time() -> None:
    """A piece larger than the window would wait until nothing is."""
    clock = VirtualClock()
    link, wire, received = measured(clock)
    link.send(*rows(1, 1000, request=2))
    link.send(*rows(2048))
    waited_s = clock.now_s()
    position = 1000
    while link.statistics().backlog_bytes:
        position += 1
        link.send(*rows(1, position, request=2))
        nbytes = wire.sent.pop(0)
        clock.advance(wire.trip_s + nbytes / wire.bytes_per_s)
        received += nbytes
        link.granted(Grant("b", 1, received + WINDOW, received))
        assert wire.sent
        assert clock.now_s() < waited_s + 1
