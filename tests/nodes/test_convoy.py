"""Decodes that travel together: who waits for whom, and never for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_mq.clock import VirtualClock
from helix_mq.ids import ROUTER
from helix_mq.messages.data import SAMPLE, TOGETHER, FrameHeader, Row
from nodes.batching import SeqKey, Work
from nodes.convoy import FIRST_ROUND_S, LONGEST_ROUNDS, Convoy
from nodes.payload import FrameUse, Payload
from tests.nodes.worker_bench import ONWARD, WAIT_S, Bench, bench, decode, key, prompt


def row(request: int, position: int, *, together: bool = False, to: str = "z") -> Work[Payload]:
    use = FrameUse(1, lambda: None)
    payload = Payload(
        "int32", 1, memoryview(b""), use, ONWARD, b"", 0, 1, 0, None, None, together=together
    )
    count = 1 if position else 4
    return Work(key(request), position, count, ONWARD.hops[0].layers, to, True, payload)


def convoy(*requests: int) -> tuple[Convoy, VirtualClock]:
    clock = VirtualClock()
    made = Convoy(clock)
    for request in requests:
        made.took(row(request, 0, together=True))
    return made, clock


def test_who_is_here_waits_for_who_is_away() -> None:
    made, clock = convoy(1, 2)
    assert made.wait_s() == 0
    made.left([row(1, 4)])
    assert made.wait_s() == LONGEST_ROUNDS * FIRST_ROUND_S
    clock.advance(0.01)
    made.took(row(1, 5))
    assert made.wait_s() == 0
    assert 0.01 < made.round_s < FIRST_ROUND_S


def test_of_who_does_not_come_back_it_is_soon_given_up() -> None:
    made, clock = convoy(1, 2)
    made.left([row(1, 4)])
    clock.advance(LONGEST_ROUNDS * FIRST_ROUND_S)
    assert made.wait_s() == 0
    made.left([row(2, 4)])
    assert made.wait_s() > 0
    made.forget(key(2))
    assert made.wait_s() == 0


def test_prompts_single_hops_and_other_routes_are_not_waited_for() -> None:
    made, _ = convoy(1)
    made.took(row(2, 0, together=True, to=ROUTER))
    made.took(row(3, 0))
    made.left([row(1, 0), row(2, 4), row(3, 4)])
    assert made.wait_s() == 0
    assert list(made.members) == [key(1)]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["left", "took", "forget", "time"]))))
def test_nobody_is_waited_for_who_is_here_and_nobody_for_longer_than_said(
    steps: list[tuple[int, str]],
) -> None:
    made, clock = convoy(*range(5))
    away: dict[SeqKey, float] = {}
    for request, what in steps:
        if what == "left":
            made.left([row(request, 9)])
            if key(request) in made.members:
                away[key(request)] = clock.now_s()
        elif what == "took":
            made.took(row(request, 9))
            away.pop(key(request), None)
        elif what == "forget":
            made.forget(key(request))
            away.pop(key(request), None)
        else:
            clock.advance(0.03 * (request + 1))
        last_s = max(away.values(), default=None)
        due_s = last_s + LONGEST_ROUNDS * made.round_s if last_s is not None else 0.0
        assert made.wait_s() == max(0.0, due_s - clock.now_s())
    assert made.round_s >= 0
    clock.advance(LONGEST_ROUNDS * made.round_s)
    assert made.wait_s() == 0


def together(b: Bench, *requests: int) -> None:
    """Prompts whose hops share one device, through their first step."""
    rows = [Row(r, 0, 0, 4, 0, 0, SAMPLE | TOGETHER, 0, prompt(r).spec) for r in requests]
    b.frame(*rows, route=ONWARD)


def onward(b: Bench) -> list[list[tuple[int, int]]]:
    """(request, position) of each frame to the next hop."""
    headers = [m for peer, m in b.sent if peer == "z" and isinstance(m, FrameHeader)]
    return [[(r.request, r.position) for r in header.rows] for header in headers]


async def first_away(b: Bench) -> None:
    """Two that share one device, of which the first one's decode is on its way."""
    together(b, 1, 2)
    await b.until(lambda: len(onward(b)) == 1)
    b.frame(decode(1, 4), route=ONWARD)
    await b.until(lambda: len(onward(b)) == 2)


async def test_a_first_hop_sends_decodes_on_together() -> None:
    async with bench() as b:
        await first_away(b)
        # The other one's first token is back when the first one is on its way.
        b.frame(decode(2, 4), route=ONWARD)
        b.frame(decode(1, 5), route=ONWARD)
        await b.until(lambda: len(onward(b)) == 3)
        assert onward(b)[1:] == [[(1, 4)], [(2, 4), (1, 5)]]
        # A prompt goes at once, and those who wait go with it.
        b.frame(decode(1, 6), route=ONWARD)
        together(b, 3)
        await b.until(lambda: len(onward(b)) == 4)
        assert onward(b)[3] == [(1, 6), (3, 0)]
        for request in (1, 2, 3):
            b.release(request)


async def test_a_row_that_never_comes_back_holds_the_others_up_once() -> None:
    async with bench() as b:
        await first_away(b)
        b.frame(decode(2, 4), route=ONWARD)
        b.clock.advance(WAIT_S)
        b.worker.wake()
        await b.until(lambda: len(onward(b)) == 3)
        assert onward(b)[2] == [(2, 4)]
        # A request that is over is waited for by nobody.
        b.frame(decode(2, 5), route=ONWARD)
        await b.until(lambda: len(onward(b)) == 4)
        b.release(1)
        b.release(2)


async def test_the_wait_ends_by_itself() -> None:
    async with bench() as b:
        await first_away(b)
        b.frame(prompt(9))
        await b.until(lambda: len(b.tokens) == 1)
        b.frame(decode(2, 4), route=ONWARD)
        b.frame(decode(9, 4))
        await b.until(lambda: len(b.tokens) == 2)
        # The worker has looked and left one where it was; only its own timer wakes it now.
        assert len(onward(b)) == 2
        b.clock.advance(WAIT_S)
        await b.until(lambda: len(onward(b)) == 3)
        assert b.overdrafts == 0
        for request in (1, 2, 9):
            b.release(request)
