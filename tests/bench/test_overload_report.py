"""The figures of the overload bench, on outcomes made by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.chaos.processes import Holds
from bench.overload_load import LoadMaker
from bench.overload_report import (
    Objectives,
    Samples,
    is_good,
    phase_report,
    processes,
    slope_per_min,
    spread,
)
from bench.overload_types import (
    BROKEN,
    LATE,
    REFUSED,
    SERVED,
    Job,
    LoadResult,
    Outcome,
    Sender,
)

OBJECTIVES = Objectives(ttft_s=2.0, tpot_s=0.5)
JOB = Job(
    host="127.0.0.1",
    port=1,
    model="m",
    senders=(Sender("a", "ka", 0, 0.5, 9.0), Sender("b", "kb", 1, 0.5, 9.0)),
    seconds=20.0,
    rate_per_s=5.0,
    at_once=1,
    prompt_tokens=(4, 8),
    output_tokens=(3, 3),
    seed=1,
    grace_s=0.0,
)


def outcome(**changes: Any) -> Outcome:
    good = Outcome(
        sender=0,
        kind=SERVED,
        status=200,
        code="",
        retry_after_s=None,
        due_s=6.0,
        sent_s=6.1,
        first_s=7.0,
        ended_s=8.0,
        tokens=3,
    )
    return msgspec.structs.replace(good, **changes)


def test_only_what_meets_its_objectives_is_good() -> None:
    assert is_good(outcome(), 0, OBJECTIVES)
    assert not is_good(outcome(due_s=4.9), 0, OBJECTIVES)
    assert not is_good(outcome(ended_s=8.1), 0, OBJECTIVES)
    assert not is_good(outcome(kind=LATE), 0, OBJECTIVES)
    # A background request need only have ended well.
    assert is_good(outcome(due_s=0.0, ended_s=19.0), 1, OBJECTIVES)
    assert not is_good(outcome(kind=BROKEN), 1, OBJECTIVES)


def test_a_phase_counts_what_ended_in_its_window() -> None:
    refused = outcome(
        kind=REFUSED, status=503, code="cluster_full", retry_after_s=3.0, first_s=None, tokens=0
    )
    outcomes = (
        outcome(),
        outcome(sender=1, due_s=1.0),
        outcome(ended_s=4.9, first_s=4.8, due_s=4.7),
        outcome(ended_s=20.0, first_s=19.9, due_s=19.8),
        outcome(due_s=1.0),
        outcome(kind=LATE, code="deadline_exceeded"),
        refused,
        msgspec.structs.replace(refused, retry_after_s=None),
    )
    samples = Samples(at_s=[1.0], holds={"router": [Holds(1 << 20, 9, 1)]}, cpu_s={"router": 0.5})
    found = phase_report(JOB, LoadResult(outcomes, 2.0, 20.0), samples, OBJECTIVES)
    assert found["from_s"] == 5.0
    assert found["good_tokens_per_s"] == pytest.approx(2 * 3 / 15, abs=0.06)
    assert found["served_tokens_per_s"] == pytest.approx(3 * 3 / 15, abs=0.06)
    assert (found["admitted"], found["admitted_that_ended_well"]) == (6, 5)
    assert found["not_well"] == {"late deadline_exceeded": 1}
    told: Any = found["refused"]
    assert told["503 cluster_full"]["without_retry_after"] == 1
    assert told["503 cluster_full"]["told_after_s"]["p50"] == 2.0


def test_growth_is_the_slope_after_the_first_third() -> None:
    rss = [100 << 20, 200 << 20, *(((210 + i) << 20) for i in range(4))]
    samples = Samples([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], {"n": [Holds(r, 5, 1) for r in rss]})
    found: Any = processes(samples)["n"]
    assert found["rss_mib_per_min"] == pytest.approx(60.0)
    assert found["descriptors_per_min"] == 0.0


@given(
    st.lists(st.floats(0, 1e3), min_size=2, max_size=20, unique=True),
    st.floats(-50, 50),
    st.floats(-1e3, 1e3),
)
def test_the_slope_of_a_line_is_its_slope(at_s: list[float], slope: float, start: float) -> None:
    at_s = sorted(round(t, 2) for t in at_s)
    if at_s[-1] - at_s[0] < 1.0:
        return
    values = [start + slope / 60 * t for t in at_s]
    assert slope_per_min(at_s, values) == pytest.approx(slope, abs=1e-3)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200))
def test_at_most_one_in_a_hundred_is_above_p99(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    rounded = [round(v, 4) for v in values]
    assert sum(v > found.p99 for v in rounded) <= len(values) / 100
    assert found.p50 <= found.p99 <= found.most == max(rounded)


ANSWERS = {
    SERVED: b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[],"usage":'
    b'{"completion_tokens":3}}\n\ndata: [DONE]\n\n',
    LATE: b'data: {"choices":[{"text":"a"}]}\n\ndata: {"error":{"code":"deadline_exceeded"}}\n\n',
    BROKEN: b'data: {"choices":[{"text":"a"}]}\n\n',
}
REFUSAL = b'{"error":{"code":"queue_full"}}'


@pytest.mark.parametrize("kind", [SERVED, LATE, BROKEN, REFUSED, "cut"])
async def test_the_load_process_tells_how_an_answer_ended(kind: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if kind == REFUSED:
            head = b"HTTP/1.1 429 x\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(REFUSAL) + REFUSAL)
        elif kind != "cut":
            body = ANSWERS[kind]
            head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        job = msgspec.structs.replace(JOB, port=port, seconds=1.0, rate_per_s=10.0, grace_s=30.0)
        result = await LoadMaker(job).run()
    assert result.outcomes
    assert {o.kind for o in result.outcomes} == {BROKEN if kind == "cut" else kind}
    assert all(o.sent_s >= o.due_s for o in result.outcomes)
    if kind == REFUSED:
        assert {(o.status, o.code, o.retry_after_s) for o in result.outcomes} == {
            (429, "queue_full", 7.0)
        }


async def test_without_a_rate_so_many_requests_are_kept_under_way() -> None:
    open_now, most = 0, 0
    three = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        await reader.readuntil(b"\r\n\r\n")
        open_now += 1
        most = max(most, open_now)
        if open_now == 3:
            three.set()
        await three.wait()
        open_now -= 1
        writer.write(b"HTTP/1.1 503 x\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL) + REFUSAL)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        job = msgspec.structs.replace(
            JOB, port=port, seconds=0.2, rate_per_s=None, at_once=3, grace_s=30.0
        )
        result = await LoadMaker(job).run()
    assert most == 3
    assert {o.retry_after_s for o in result.outcomes} == {None}
