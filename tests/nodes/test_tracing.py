"""What a request takes on a node: the parts add up, nothing overlaps, nothing grows."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from helix_mq.clock import VirtualClock
from helix_mq.messages.control import HopTrace, TraceWanted
from nodes import tracing
from nodes.batching import SeqKey
from nodes.tracing import MAX_ITEMS, MAX_LEFT, Tracer
from tests.nodes.worker_bench import bench, decode, key, prompt


@dataclass
class Use:
    arrived_s: float


@dataclass
class Payload:
    use: Use


@dataclass
class Row:
    seq: SeqKey
    count: int
    sample: bool
    payload: Payload = field(default_factory=lambda: Payload(Use(0.0)))


def row(request: int, arrived_s: float, count: int = 1, *, sample: bool = True) -> Row:
    return Row(key(request), count, sample, Payload(Use(arrived_s)))


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Tracer:
    monkeypatch.setattr(tracing, "perf_counter", lambda: 10.0)
    return Tracer(VirtualClock(0.0, 1_700_000_000.0))


def test_the_parts_of_prompt_and_decodes_add_up(tracer: Tracer) -> None:
    tracer.open(key(5))
    # A prompt in two chunks of one frame: the second has waited from the end of the first.
    tracer.stepped([row(5, 10.0, 64, sample=False)], 10.5, 11.5, 11.75)
    tracer.stepped([row(5, 10.0, 36)], 12.0, 13.0, 13.25)
    # Decodes share steps with another request, whose rows are none of this one's.
    tracer.open(key(6))
    for start_s in (20.0, 30.0):
        both = [row(5, start_s), row(6, start_s - 1, sample=False)]
        tracer.stepped(both, start_s + 0.25, start_s + 0.75, start_s + 1.0)
    tracer.stepped([row(7, 40.0)], 41.0, 42.0, 43.0)
    (answer,) = tracer.answer(TraceWanted(5, 9)).items
    assert answer.open
    tracer.close(key(5))
    tracer.close(key(8))
    (sent,) = tracer.take()
    (trace,) = sent.items
    assert (trace.request, trace.attempt, trace.open) == (5, 0, False)
    assert (trace.began_ms, trace.span_s) == (1_700_000_000_000, 21.0)
    prefill, decodes = trace.prefill, trace.decode
    assert (prefill.steps, prefill.tokens) == (2, 100)
    assert (prefill.queue_s, prefill.compute_s, prefill.serialise_s) == (0.75, 2.0, 0.5)
    # From the first arrival to the last frame, nothing missing and nothing twice.
    assert prefill.queue_s + prefill.compute_s + prefill.serialise_s == 13.25 - 10.0
    assert (decodes.steps, decodes.tokens) == (2, 2)
    assert (decodes.queue_s, decodes.compute_s, decodes.serialise_s) == (0.5, 1.0, 0.5)
    assert list(tracer.take()) == []
    assert tracer.answer(TraceWanted(5, 9)).items == ()
    assert tracer.answer(TraceWanted(5, 9)).number == 9


def test_the_last_token_of_a_prompt_is_its_prompts_wherever_it_was_cut(tracer: Tracer) -> None:
    """Links and step budgets cut where they like: 99 and 1 as well as 64 and 36."""
    tracer.open(key(5))
    for count, sample in ((99, False), (1, True), (1, True), (3, True)):
        # The last one verifies two drafts.
        tracer.stepped([row(5, 10.0, count, sample=sample)], 10.0, 11.0, 11.0)
    tracer.open(key(6))
    # All but the last token was in the prefix cache.
    tracer.stepped([row(6, 10.0)], 10.0, 11.0, 11.0)
    tracer.stepped([row(6, 11.0)], 11.0, 12.0, 12.0)
    for request, prompt_tokens, decodes in ((5, 100, 2), (6, 1, 1)):
        (trace,) = tracer.answer(TraceWanted(request, 1)).items
        assert (trace.prefill.tokens, trace.decode.steps) == (prompt_tokens, decodes)


def test_what_has_left_is_bounded_and_told_in_bounded_messages(tracer: Tracer) -> None:
    for request in range(MAX_LEFT + 100):
        tracer.open(key(request))
        tracer.stepped([row(request, 10.0)], 10.0, 10.0, 10.0)
        tracer.close(key(request))
    assert len(tracer) == 0
    told = [trace for message in tracer.take() for trace in message.items]
    assert [t.request for t in told] == list(range(100, MAX_LEFT + 100))
    # Without a step there is nothing to tell.
    tracer.open(key(1))
    tracer.close(key(1))
    assert list(tracer.take()) == []
    for attempt in range(2 * MAX_ITEMS):
        tracer.open(key(1, attempt))
    assert len(tracer.answer(TraceWanted(1, 1)).items) == MAX_ITEMS


async def test_a_worker_measures_its_sequences_and_forgets_them() -> None:
    async with bench() as b:
        b.engine.stamp = True
        b.frame(prompt(1))
        await b.until(lambda: len(b.tokens) == 1)
        for position in (4, 5, 6):
            b.frame(decode(1, position))
            await b.until(lambda: len(b.tokens) == position - 2)  # noqa: B023
        b.frame(prompt(2))
        await b.until(lambda: len(b.tokens) == 5)
        traced = b.worker.tracer
        assert len(traced) == 2
        b.release(1)
        b.release(2)
        assert len(traced) == 0
        items: dict[int, HopTrace] = {t.request: t for m in traced.take() for t in m.items}
        assert items.keys() == {1, 2}
        one = items[1]
        assert (one.prefill.steps, one.prefill.tokens, one.decode.steps) == (1, 4, 3)
        own_s = sum(p.queue_s + p.compute_s + p.serialise_s for p in (one.prefill, one.decode))
        # Between its rows the sequence is elsewhere.
        assert 0 < own_s <= one.span_s
        assert one.prefill.compute_s > 0
