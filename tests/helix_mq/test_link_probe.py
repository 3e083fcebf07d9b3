"""What probes find out about a link, on a simulated wire and over real sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shaped_tcp import ShapedTcp
from helix_mq import link_probe
from helix_mq.clock import VirtualClock
from helix_mq.frames import encode
from helix_mq.link_probe import (
    CONFIRMED_S,
    HEADER_BYTES,
    LONG_TRIP_S,
    MOST_PIECES,
    PADDING_BYTES,
    SHARE,
    SHORT_S,
    TRAIN_EVERY_S,
    TRAINS,
    LinkProbes,
    ProbeAllowance,
)
from helix_mq.messages.data import LinkHello, LinkProbe
from helix_mq.outlink import OutLinkStatistics
from helix_mq.transport import ZmqTransport
from tests.helix_mq.plane_ends import End, Net
from tests.helix_mq.slow_start import SlowStart


def measure(rate: float, trip_s: float, seconds: float) -> tuple[LinkProbes, int, float]:
    """An idle link that is asked every second. Gives the probes, the bytes sent, and the longest
    that a train was on the wire."""
    clock = VirtualClock()
    probes = LinkProbes(clock)
    sent, longest_s = 0, 0.0
    while clock.now_s() < seconds:
        pieces = probes.train_pieces()
        start = sent
        sent += pieces * PADDING_BYTES
        at_s = clock.now_s()
        if pieces:
            probes.train_sent(start, sent, start)
            longest_s = max(longest_s, pieces * PADDING_BYTES / rate)
        for piece in range(1, pieces + 1):
            due_s = at_s + trip_s + piece * PADDING_BYTES / rate
            clock.advance(max(0.0, due_s - clock.now_s()))
            probes.acknowledged(start + piece * PADDING_BYTES, trip_s)
        if not probes.climbing:
            clock.advance(max(0.0, at_s + 1.0 - clock.now_s()))
    return probes, sent, longest_s


@given(st.floats(1e4, 1e10), st.floats(0, 0.5))
def test_an_idle_links_bandwidth_is_found_whatever_its_delay(rate: float, trip_s: float) -> None:
    probes, sent, longest_s = measure(rate, trip_s, 600.0)
    assert probes.bytes_per_s in (pytest.approx(rate, rel=0.01), 0.0)
    if rate > 1e5:
        assert probes.bytes_per_s > 0, "slower ones are measured too seldom to be remembered"
    start = 5 * MOST_PIECES * PADDING_BYTES
    climbs = 2 if trip_s >= LONG_TRIP_S else 1
    assert sent <= start + climbs * MOST_PIECES * PADDING_BYTES * 600 / TRAIN_EVERY_S
    if PADDING_BYTES / rate > SHORT_S:
        once = 6 if climbs == 1 else 30
        assert sent <= once * PADDING_BYTES + SHARE * rate * 600, "a small share of a slow link"
    longest = 4 * SHORT_S if climbs == 1 else 0.5
    assert longest_s <= max(2 * PADDING_BYTES / rate, longest)


def test_acknowledgements_all_at_once_give_no_rate() -> None:
    clock = VirtualClock()
    probes = LinkProbes(clock)
    probes.train_sent(0, 100, 0)
    clock.advance(0.1)
    probes.acknowledged(100, 0.0)
    assert probes.bytes_per_s == 0
    assert probes.train_pieces() == 4


class Wire:
    """Trains over a wire of a given rate, whose sender reads acknowledgements when it says so."""

    def __init__(self, trip_s: float = 0.02) -> None:
        self.clock = VirtualClock()
        self.probes = LinkProbes(self.clock)
        self._trip_s = trip_s
        self._sent = 0

    def train(self, rate: float, held_s: float = 0.0) -> int:
        """`held_s`: how long the sender is held up once the train has left. Gives its pieces."""
        pieces = self.probes.train_pieces()
        start, at_s = self._sent, self.clock.now_s()
        self._sent += pieces * PADDING_BYTES
        if pieces:
            self.probes.train_sent(start, self._sent, start)
        for piece in range(1, pieces + 1):
            due_s = at_s + max(held_s, self._trip_s + piece * PADDING_BYTES / rate)
            # Even reading them takes a moment each.
            self.clock.advance(max(1e-5, due_s - self.clock.now_s()))
            self.probes.acknowledged(start + piece * PADDING_BYTES, self._trip_s)
        self.clock.advance(0.0 if self.probes.climbing else 1.0)
        return pieces


def test_acknowledgements_read_all_at_once_do_not_make_a_link_fast() -> None:
    wire = Wire()
    for _ in range(10):
        wire.train(12.5e6, held_s=0.15)
        assert wire.probes.bytes_per_s <= 12.5e6 * 1.01
    assert wire.probes.bytes_per_s > 0


@pytest.mark.parametrize("trip_s", [0.005, 0.04])
def test_a_late_train_does_not_make_a_link_slow(trip_s: float) -> None:
    wire = Wire(trip_s)
    while not wire.probes.bytes_per_s:
        wire.train(12.5e6)
    assert wire.probes.bytes_per_s == pytest.approx(12.5e6, rel=0.01)
    wire.clock.advance(TRAIN_EVERY_S)
    assert wire.train(12.5e6, held_s=0.19)
    assert wire.probes.bytes_per_s == pytest.approx(12.5e6, rel=0.01), "not believed at once"
    assert wire.train(12.5e6), "but asked again"
    assert wire.probes.bytes_per_s == pytest.approx(12.5e6, rel=0.01)


def test_a_link_that_has_become_slow_is_believed_after_three_trains() -> None:
    wire = Wire(0.005)
    while not wire.probes.bytes_per_s:
        wire.train(125e6)
    wire.clock.advance(TRAIN_EVERY_S)
    rates = [wire.probes.bytes_per_s for _ in range(TRAINS) if wire.train(12.5e6)]
    assert len(rates) == TRAINS
    assert rates[-1] == pytest.approx(12.5e6, rel=0.01)
    assert not wire.train(12.5e6), "known for some seconds"


def test_processes_that_start_together_do_not_make_a_link_slow_for_a_minute() -> None:
    """All its first trains found both ends loading their slices."""
    wire = Wire(0.005)
    while not wire.probes.bytes_per_s:
        wire.train(1e6)
    assert wire.probes.bytes_per_s == pytest.approx(1e6, rel=0.01)
    began_s = wire.clock.now_s()
    while wire.probes.bytes_per_s < 2e6:
        wire.train(125e6)
    assert wire.probes.bytes_per_s == pytest.approx(125e6, rel=0.05)
    assert wire.clock.now_s() - began_s < TRAIN_EVERY_S / 3, "lengthened, and three of them"
    # Confirmed once, it is known for a minute.
    wire.clock.advance(2 * CONFIRMED_S)
    assert wire.train(125e6)
    wire.clock.advance(TRAIN_EVERY_S - 10)
    assert not wire.train(125e6)
    wire.clock.advance(10)
    assert wire.train(125e6)


def test_a_link_whose_trains_never_agree_is_not_asked_more_and_more_often() -> None:
    wire, rates = Wire(0.005), itertools.cycle([50e6, 500e6, 5e6, 150e6, 15e6, 1e9, 1e7])
    pieces = sum(wire.train(next(rates)) for _ in range(1200))
    most = MOST_PIECES * TRAINS
    assert pieces <= 8 * most + most * 1200 / TRAIN_EVERY_S


@pytest.mark.parametrize("rate", [2.5e5, 2.5e6, 12.5e6, 125e6])
@pytest.mark.parametrize("trip_s", [0.02, 0.04, 0.15])
def test_a_long_links_bandwidth_is_not_tcps_slow_start(rate: float, trip_s: float) -> None:
    wire = SlowStart(rate, trip_s)
    # A second of trains does not fill a wire of 1 Gbit/s; what is found of it is ample.
    least = 0.65 * rate if rate < 125e6 else 0.2 * rate
    wire.until_known()
    assert least <= wire.probes.bytes_per_s <= 1.01 * rate
    once = sum(wire.trains)
    assert once <= 3 * MOST_PIECES
    for _ in range(3):
        wire.minute()
        assert least <= wire.probes.bytes_per_s <= 1.01 * rate
    assert sum(wire.trains) - once <= 3 * 3 * MOST_PIECES


def test_a_long_link_that_has_become_slow_or_fast_is_believed() -> None:
    wire = Wire(0.04)
    for rate in (12.5e6, 1.25e6, 12.5e6):
        while wire.train(rate):
            pass
        assert wire.probes.bytes_per_s == pytest.approx(rate, rel=0.01)
        wire.clock.advance(2 * TRAIN_EVERY_S)


def test_a_first_train_that_is_held_up_makes_no_long_link_slow() -> None:
    wire = Wire(0.04)
    wire.train(12.5e6, held_s=0.8)
    while wire.train(12.5e6):
        pass
    assert wire.probes.bytes_per_s == pytest.approx(12.5e6, rel=0.01)


def test_a_climb_that_is_held_up_for_ever_ends() -> None:
    wire = Wire(0.04)
    sent = 0
    for train in range(50):
        sent += wire.train(12.5e6, held_s=0.05 + 0.1 * (train % 3))
    assert 0 < wire.probes.bytes_per_s <= 12.5e6 * 1.01
    assert sent <= 4 * MOST_PIECES


def test_only_the_awaited_echo_counts() -> None:
    clock = VirtualClock()
    probes = LinkProbes(clock)
    number = probes.next_probe()
    assert number is not None
    assert probes.next_probe() is None
    clock.advance(0.25)
    assert probes.echoed(number + 1) is None
    assert probes.echoed(number) == pytest.approx(0.25)
    assert probes.echoed(number) is None
    assert probes.next_probe() is None, "too early"
    clock.advance(1)
    assert probes.next_probe() == number + 1


def test_silence_is_counted_while_a_probe_waits_and_not_while_we_were_stopped_ourselves() -> None:
    clock = VirtualClock()
    probes = LinkProbes(clock)
    probes.next_probe()
    clock.advance(9)
    assert probes.silent_s() == 0, "it may be one that does not know probes"
    probes.echoed(1)
    for _ in range(5):
        clock.advance(1)
        assert probes.silent_s() == 0, "nobody was asked"
    probes.next_probe()
    clock.advance(1)
    assert probes.silent_s() == pytest.approx(1)
    clock.advance(1)
    assert probes.silent_s() == pytest.approx(2)
    clock.advance(100)
    assert probes.silent_s() < 4, "whoever is stopped for 100 s has heard nobody"
    probes.heard()
    clock.advance(1)
    assert probes.silent_s() == pytest.approx(1)


def test_a_receiver_takes_what_honest_senders_send_and_not_much_more() -> None:
    clock = VirtualClock()
    allowance = ProbeAllowance(clock)
    for pieces in (2, 4, 8, 16, 32):
        assert all(allowance.take(PADDING_BYTES) for _ in range(pieces))
        assert allowance.take(0)
        clock.advance(1)
    taken = sum(allowance.take(PADDING_BYTES) for _ in range(1000))
    assert taken * PADDING_BYTES <= ProbeAllowance.BURST_BYTES
    clock.advance(10)
    assert allowance.take(PADDING_BYTES)


# -- over sockets -----------------------------------------------------------------


async def refreshing(*ends: End) -> None:
    """As processes do; more often, so that the tests are short."""
    while True:
        for end in ends:
            end.plane.refresh()
            end.changed.set()
        await asyncio.sleep(0.1)


@asynccontextmanager
async def shaped(rate: float, delay_s: float) -> AsyncIterator[tuple[End, End, ShapedTcp]]:
    """`a` reaches `b` through the thin wire; nobody else is there."""
    net = Net(ZmqTransport(), [], "tcp")
    a, b = await net.bound("a"), await net.bound("b")
    wire = ShapedTcp(int(b.endpoint.rsplit(":", 1)[1]), rate, delay_s)
    endpoint = await wire.start()
    task = asyncio.create_task(refreshing(a, b))
    try:
        await a.plane.set_peers({"b": replace(b.address, endpoint=endpoint)})
        await a.until(lambda: a.credits > 0)
        yield a, b, wire
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for end in net.ends:
            await end.plane.close()
        await wire.close()
        await net.transport.close()


def link(end: End) -> OutLinkStatistics:
    (statistics,) = end.plane.statistics()
    return statistics


@pytest.mark.alone
@pytest.mark.parametrize(("rate", "delay_s"), [(2.5e6, 0.020), (2.5e6, 0.005)])
async def test_an_idle_link_is_measured(
    rate: float, delay_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 Mbit/s with a round trip of 40 ms and of 10, which are measured differently. The wire is
    a task of this loop: where that is busy the wire is slower than it says, so it is measured until
    it was not."""
    monkeypatch.setattr(link_probe, "TRAIN_EVERY_S", 1.0)
    monkeypatch.setattr(link_probe, "SHARE", 1.0)
    async with shaped(rate, delay_s) as (a, b, _):

        def near() -> bool:
            seen = link(a)
            return seen.probed_bytes_per_s == pytest.approx(rate, rel=0.25) and (
                seen.round_trip_s == pytest.approx(2 * delay_s, rel=0.25, abs=0.002)
            )

        await a.until(near)
        assert b.messages == [], "nobody above sees a probe"
        assert (link(a).sent_bytes, link(a).sent_frames) == (0, 0)


@pytest.mark.alone
async def test_a_link_whose_packets_vanish_is_noticed_and_comes_back() -> None:
    async with shaped(1e9, 0.0) as (a, b, wire):
        await a.until(lambda: link(a).round_trip_s > 0)
        wire.swallow()
        started_s = asyncio.get_running_loop().time()
        a.send("b", 2)
        await a.until(lambda: a.lost == ["b"])
        assert asyncio.get_running_loop().time() - started_s < 12, "ZeroMQ takes 15 s"
        assert link(a).down_s > 2.5
        wire.let_through()
        await a.until(lambda: link(a).down_s == 0)
        a.send("b", 3)
        await b.until(lambda: 3 in b.requests)
        assert a.lost == ["b"]


@pytest.mark.alone
async def test_a_flood_of_probes_is_counted_and_not_answered() -> None:
    net = Net(ZmqTransport(), [], "tcp")
    b = await net.bound("b")
    replies: list[object] = []
    raw = await net.raw(b, replies)
    task = asyncio.create_task(refreshing(b))
    try:
        raw.send(encode(LinkHello("x", 1, 7)))
        padding = bytes(PADDING_BYTES)
        for number in range(400):
            raw.send(encode(LinkProbe(7, number), (padding,)))
        await b.until(lambda: b.plane.bad_messages["x", "probes"] > 0)
        raw.send(encode(LinkProbe(7, 1), (padding, padding)))
        await b.until(lambda: b.plane.bad_messages["x", "padding"] > 0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await raw.close()
        await b.plane.close()
        await net.transport.close()


@given(steps=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=200))
def test_a_senders_trains_are_never_more_than_a_receiver_takes(steps: list[float]) -> None:
    """On a link so fast that every train is over at once and the next may follow."""
    clock = VirtualClock()
    probes, allowance, total = LinkProbes(clock), ProbeAllowance(clock), 0
    for gone_s in steps:
        if probes.next_probe() is not None:
            assert allowance.take(0)
        pieces = probes.train_pieces()
        for _ in range(pieces):
            assert allowance.take(PADDING_BYTES + HEADER_BYTES)
        if pieces:
            start, total = total, total + pieces * PADDING_BYTES
            probes.train_sent(start, total, start)
            probes.acknowledged(total, 0.0)
        clock.advance(gone_s)
