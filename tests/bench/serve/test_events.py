"""Bytes into events, events into what is known of a request, and that into its kind."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.serve.events import MAX_EVENT_BYTES, BadStream, EventLines, refusal_code, take_event
from bench.serve.seen import Seen, judge
from bench.serve.types import BROKEN, LATE, REFUSED, SERVED, WRONG

BODY = (
    b': still here\n\ndata: {"choices":[{"text":" a"}]}\n\n'
    b'event: x\r\ndata:{"choices":[]}\r\n\r\ndata: one\ndata: two\n\ndata: [DONE]\n\n'
)
EVENTS = [b'{"choices":[{"text":" a"}]}', b'{"choices":[]}', b"one\ntwo", b"[DONE]"]


@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_events_are_the_same_however_the_bytes_come(cuts: list[int]) -> None:
    places = sorted({0, len(BODY), *cuts})
    lines = EventLines()
    pieces = [BODY[a:b] for a, b in itertools.pairwise(places)]
    assert [event for piece in pieces for event in lines.feed(piece)] == EVENTS


@pytest.mark.parametrize("piece", [b"x" * 50_000, b"data: " + b"x" * 50_000 + b"\n"])
def test_an_event_without_an_end_is_bounded(piece: bytes) -> None:
    lines = EventLines()

    def feed_all() -> None:
        for _ in range(MAX_EVENT_BYTES // 50_000 + 2):
            assert not list(lines.feed(piece))

    with pytest.raises(BadStream):
        feed_all()


def taken(*events: object) -> tuple[Seen, list[bool]]:
    seen = Seen()
    output = [
        take_event(e if isinstance(e, bytes) else json.dumps(e).encode(), seen, float(i))
        for i, e in enumerate(events)
    ]
    return seen, output


def test_only_events_with_output_count_as_tokens() -> None:
    seen, output = taken(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": None},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "b"}}]},
        {"choices": [{"index": 0, "text": "c"}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}},
        b"[DONE]",
    )
    assert output == [False, True, True, True, False, False, False]
    assert list(seen.at_s) == [1.0, 2.0, 3.0]
    assert (seen.prompt_tokens, seen.tokens, seen.finished) == (7, 3, True)
    assert judge(seen, 3, True) == (SERVED, "")
    assert judge(seen, 5, False) == (SERVED, "")
    assert judge(seen, 5, True)[0] == WRONG
    assert judge(seen, 2, False)[0] == WRONG


@pytest.mark.parametrize("event", [b"{", b"[]", b'{"choices": 3}', b"\xff"])
def test_what_is_no_chunk_is_a_bad_stream(event: bytes) -> None:
    with pytest.raises(BadStream):
        taken(event)


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (Seen(status=429, code="queue_full"), REFUSED),
        (Seen(status=503), REFUSED),
        (Seen(status=500, code="internal_error"), BROKEN),
        (Seen(status=400, code="unknown_parameter (ignore_eos)"), BROKEN),
        (Seen(status=504), LATE),
        (Seen(status=200, code="deadline_exceeded"), LATE),
        (Seen(status=200, overdue=True), LATE),
        (Seen(status=200, code="kv_exhausted"), BROKEN),
        (Seen(fault="the connection was closed"), BROKEN),
        (Seen(status=200), BROKEN),
        (Seen(status=200, finished=True), WRONG),
        (Seen(status=200, finished=True, tokens=0), WRONG),
        (Seen(status=200, finished=True, tokens=4), SERVED),
    ],
)
def test_kinds(seen: Seen, kind: str) -> None:
    assert judge(seen, 4, seen.tokens == 4)[0] == kind


def test_an_error_in_the_stream_is_its_end() -> None:
    seen, _ = taken({"choices": [{"text": "a"}]}, {"error": {"message": "m", "code": "no_room"}})
    seen.status = 200
    assert judge(seen, 4, True) == (BROKEN, "200 no_room")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error": {"message": "m", "code": "queue_full"}}', "queue_full"),
        (b'{"error": {"message": "m", "code": "c", "param": "n"}}', "c (n)"),
        (b'{"object": "error", "message": "full", "type": "Overloaded"}', "Overloaded"),
        (b'{"error": "plain words"}', "plain words"),
        (b"<html>", ""),
        (b"[1]", ""),
    ],
)
def test_what_servers_say_of_a_refusal(body: bytes, code: str) -> None:
    assert refusal_code(body) == code
