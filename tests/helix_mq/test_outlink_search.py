"""A prompt over a long link that no probe has measured: as fast as TCP, in pieces worth a step."""

from __future__ import annotations

import pytest

from helix_mq.frames import Buffer, pack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SAMPLE, FrameHeader, Row
from helix_mq.pacing import FIRST_PIECE_BYTES, FIRST_WINDOW_BYTES
from tests.helix_mq.long_wire import LongWire

WIDTH = 8192
TOKEN_BYTES = 2 * WIDTH
PROMPT_TOKENS = 512
PROMPT_BYTES = PROMPT_TOKENS * TOKEN_BYTES
DECODE_EVERY_S = 0.05
ROUTE = pack_route(Route((Hop(NodeId("a"), LayerRange(0, 1)), Hop(NodeId("b"), LayerRange(1, 2)))))

LONG = pytest.mark.parametrize(
    ("rate", "trip_s"), [(12.5e6, 0.04), (12.5e6, 0.1), (125e6, 0.04), (125e6, 0.1)]
)


def rows(tokens: int, position: int = 0, request: int = 1) -> tuple[FrameHeader, list[Buffer]]:
    row = Row(request, 0, position, tokens, 0, 1, SAMPLE, 7)
    header = FrameHeader(1, "a", "bfloat16", WIDTH, (row,), (ROUTE,))
    return header, [memoryview(bytes(tokens * TOKEN_BYTES))]


def tcp_alone_s(rate: float, trip_s: float) -> float:
    """For the same bytes, all handed over at once."""
    wire = LongWire(rate, trip_s)
    wire.send([bytes(PROMPT_BYTES)])
    while not wire.arrivals:
        wire.run(0.01)
    return wire.arrivals[0].at_s


def decodes(wire: LongWire, seconds: float) -> None:
    until_s = wire.clock.now_s() + seconds
    while wire.clock.now_s() < until_s:
        wire.link.send(*rows(1, round(1e6 * wire.clock.now_s()), request=2))
        wire.run(DECODE_EVERY_S)


def prompt(wire: LongWire) -> tuple[float, list[int], float]:
    """Sends one beside decodes: how long it took, its pieces, the longest that a decode took."""
    start_s, first = wire.clock.now_s(), len(wire.arrivals)
    wire.link.send(*rows(PROMPT_TOKENS))
    pieces, longest_s, end_s = [0], 0.0, 0.0
    while sum(pieces) < PROMPT_BYTES:
        decodes(wire, DECODE_EVERY_S)
        seen = wire.arrivals[first:]
        large = [a for a in seen if a.nbytes > 2 * TOKEN_BYTES]
        pieces = [a.nbytes for a in large]
        end_s = large[-1].at_s if large else 0.0
        longest_s = max((a.at_s - a.sent_at_s for a in seen if a not in large), default=0.0)
        assert wire.clock.now_s() < start_s + 60
    return end_s - start_s, pieces, longest_s


@LONG
@pytest.mark.parametrize("before", ["nothing", "decodes", "a prompt"])
def test_a_prompt_needs_little_more_than_tcp(rate: float, trip_s: float, before: str) -> None:
    """It took four times as long on a new link, and after decodes 256 pieces of two tokens."""
    wire = LongWire(rate, trip_s)
    if before == "decodes":
        decodes(wire, 12.0)
    elif before == "a prompt":
        prompt(wire)
        wire.run(3.0)
    took_s, pieces, longest_s = prompt(wire)
    assert took_s < 1.25 * tcp_alone_s(rate, trip_s)
    assert len(pieces) <= PROMPT_BYTES // FIRST_PIECE_BYTES
    # TCP starts slowly after a pause, for decodes too, and what is searched with is in their way.
    assert longest_s < 8 * trip_s + FIRST_WINDOW_BYTES / rate


def test_a_search_ends_where_a_thin_link_is_full() -> None:
    """Then a decode waits for little more than a piece of 32 KiB, as long as there are prompts."""
    rate, trip_s = 1.25e6, 0.04
    wire = LongWire(rate, trip_s)
    prompt(wire)
    wire.run(1.0)
    assert wire.link._pacer.measured
    assert 0.8 * rate < wire.link.statistics().bytes_per_s < 1.2 * rate
    _, pieces, longest_s = prompt(wire)
    assert max(pieces[-20:]) < 3 * TOKEN_BYTES
    assert longest_s < trip_s + 0.2


@pytest.mark.parametrize("rate", [12.5e6, 125e6])
def test_a_link_that_was_found_far_too_slow_is_soon_known_better(rate: float) -> None:
    """With a round trip of 100 ms it stayed as slow: 13 s for a prompt that TCP takes 1 s for."""
    wire = LongWire(rate, 0.1)
    wire.link._probes._rate = 2e5
    decodes(wire, 12.0)
    took_s, _, _ = prompt(wire)
    assert wire.link.statistics().probed_bytes_per_s == 2e5
    assert took_s < 1.6 * tcp_alone_s(rate, 0.1)


@LONG
def test_what_a_search_found_is_forgotten_and_found_again(rate: float, trip_s: float) -> None:
    """Else a link that was slow once would be for as long as it carries decodes only."""
    wire = LongWire(rate, trip_s)
    times = []
    for _ in range(2):
        took_s, pieces, _ = prompt(wire)
        times.append(took_s)
        assert min(pieces[:-1]) > FIRST_PIECE_BYTES / 2
        decodes(wire, 15.0)
    assert times[1] < 1.1 * times[0]
