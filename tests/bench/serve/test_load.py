"""The sending of a load, on virtual time, against services whose timing is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.serve.arrivals import Due
from bench.serve.load import Load
from bench.serve.prompts import Prompts
from bench.serve.seen import Seen
from bench.serve.types import BROKEN, LATE, SERVED, WRONG, Outcome
from bench.traces.types import Lengths
from helix_mq.errors import ConnectionLost
from tests.bench.serve.virtual import LoopClock, run_virtually

TTFT_S, TPOT_S = 0.5, 0.1


class Service:
    """Answers with a first token after TTFT_S and one each TPOT_S after it; `odd`: what request n
    does instead."""

    def __init__(self, clock: LoopClock, odd: dict[int, str] | None = None) -> None:
        self.clock = clock
        self.odd = odd or {}
        self.begun: list[float] = []
        self.running = 0
        self.running_most = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def prepare(self, prompt: str, tokens: int) -> object:
        return tokens

    async def send(self, prepared: object, seen: Seen, on_event: Callable[[], None]) -> None:
        assert isinstance(prepared, int)
        odd = self.odd.get(len(self.begun))
        self.begun.append(self.clock.now_s())
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            for n in range(prepared):
                await asyncio.sleep(TPOT_S if n else TTFT_S)
                if odd == "cut" and n == 1:
                    raise ConnectionLost("the connection was closed")
                if odd == "stuck" and n == 1:
                    await asyncio.sleep(1e6)
                seen.at_s.append(self.clock.now_s())
                on_event()
            seen.status, seen.finished = 200, True
            seen.prompt_tokens = 3
            seen.tokens = prepared - 1 if odd == "short" else prepared
        finally:
            self.running -= 1


def dues(times: list[float | None], tokens: int = 5) -> Iterator[Due]:
    return (Due(n, at_s, Lengths(3, tokens)) for n, at_s in enumerate(times))


def loaded(
    times: list[float | None],
    at_once: int | None = None,
    *,
    tokens: int = 5,
    odd: dict[int, str] | None = None,
    until_s: float | None = None,
    stop_s: float | None = None,
    start_s: float = 2.0,
) -> tuple[Load, Service, list[Outcome]]:
    async def work(clock: LoopClock) -> tuple[Load, Service, list[Outcome]]:
        outcomes: list[Outcome] = []
        service = Service(clock, odd)
        load = Load(service, Prompts(1), clock, 30.0, True, outcomes.append)
        if stop_s is not None:
            asyncio.get_running_loop().call_later(stop_s, load.stop)
        await load.run(dues(times, tokens), start_s, at_once, until_s)
        assert not service.running
        return load, service, outcomes

    return run_virtually(work)


def test_requests_go_out_when_they_are_due_whatever_becomes_of_those_before() -> None:
    load, service, outcomes = loaded([0.0, 0.1, 0.1, 0.25, 7.0])
    assert [t - 2.0 for t in service.begun] == pytest.approx([0.0, 0.1, 0.1, 0.25, 7.0])
    assert service.running_most == 4
    assert {o.kind for o in outcomes} == {SERVED}
    first = min(outcomes, key=lambda o: o.number)
    assert first.first_s == pytest.approx(TTFT_S)
    assert first.last_s == pytest.approx(TTFT_S + 4 * TPOT_S)
    assert first.ended_s == pytest.approx(TTFT_S + 4 * TPOT_S)
    assert all(o.sent_s == pytest.approx(o.due_s) for o in outcomes)
    assert load.gaps.histogram.count == 4 * 5
    assert load.gaps.histogram.total == pytest.approx(TPOT_S * 20)
    assert sum(load.tokens_by_s.amounts) == pytest.approx(25)
    assert (load.sent, load.events) == (5, 25)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 6))
def test_a_closed_load_keeps_its_places_full_and_sends_all(
    at_once: int, requests: int, tokens: int
) -> None:
    _, service, outcomes = loaded([None] * requests, at_once, tokens=tokens)
    assert sorted(o.number for o in outcomes) == list(range(requests))
    assert service.running_most == min(at_once, requests)
    # Each round takes the same time, so that rounds follow each other without a pause.
    one_s = TTFT_S + (tokens - 1) * TPOT_S
    rounds = -(-requests // at_once)
    assert max(o.ended_s for o in outcomes) == pytest.approx(rounds * one_s)
    assert all(o.sent_s == pytest.approx(o.due_s) for o in outcomes)


def test_a_closed_load_starts_none_after_its_time() -> None:
    _, _, outcomes = loaded([None] * 1000, 3, until_s=2.0)
    # Rounds begin at 0, 0.9, 1.8; that at 2.7 is too late.
    assert len(outcomes) == 9


def test_what_goes_wrong_is_told_apart_and_in_no_latency() -> None:
    load, _, outcomes = loaded([float(n) for n in range(5)], odd={1: "cut", 2: "stuck", 3: "short"})
    kinds = {o.number: (o.kind, o.reason) for o in outcomes}
    assert kinds[0] == kinds[4] == (SERVED, "")
    assert kinds[1] == (BROKEN, "the connection was closed")
    assert kinds[2] == (LATE, "deadline passed")
    assert kinds[3] == (WRONG, "another number of tokens than asked for")
    assert next(o for o in outcomes if o.number == 2).ended_s == pytest.approx(2.0 + 30.0)
    assert load.gaps.histogram.count == 8


def test_stopped_early_it_tells_what_has_ended_and_leaves_the_rest() -> None:
    load, service, outcomes = loaded([0.0, 0.2, 0.8, 5.0], stop_s=2.0 + 1.0)
    assert [o.number for o in outcomes] == [0]
    assert load.left == 2
    assert len(service.begun) == 3
    closed, service, outcomes = loaded([None] * 50, 4, stop_s=2.0 + 1.0)
    assert (len(outcomes), closed.left, len(service.begun)) == (4, 4, 8)


def test_a_load_process_that_is_held_up_says_that_it_was_late() -> None:
    """The event loop is held for 0.4 s, as by a machine that is busy with something else."""

    async def work(clock: LoopClock) -> tuple[Load, list[Outcome]]:
        outcomes: list[Outcome] = []
        load = Load(Service(clock), Prompts(1), clock, 30.0, True, outcomes.append)
        loop = asyncio.get_running_loop()
        loop.call_at(0.95, loop._advance, 0.4)  # type: ignore[attr-defined]
        await load.run(dues([0.5, 1.0, 2.0]), 0.0, None, None)
        return load, outcomes

    load, outcomes = run_virtually(work)
    late = {o.number: o.sent_s - o.due_s for o in outcomes}
    assert late[0] == pytest.approx(0)
    assert late[1] == pytest.approx(0.35)
    assert late[2] == pytest.approx(0)
    assert load.late_most_s == pytest.approx(0.35)
    assert load.lag.histogram.largest > 0.35
