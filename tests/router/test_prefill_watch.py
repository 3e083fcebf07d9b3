"""How many prompts a node is given at a time."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.ids import NodeId, RequestId
from router.prefill_watch import AT_LEAST, PrefillWatch

A, B = NodeId("a"), NodeId("b")
BOTH = frozenset((A, B))
FLOW = 1000.0


def test_without_patience_there_is_no_limit() -> None:
    watch = PrefillWatch(None)
    for i in range(1000):
        assert watch.has_room(A, 10_000, FLOW)
        watch.start(RequestId(i), BOTH, 10_000, 0.0)


def test_until_a_prompt_is_computed_the_flow_is_believed() -> None:
    watch = PrefillWatch(2.0)
    for i in range(20):
        assert watch.has_room(A, 100, FLOW)
        watch.start(RequestId(i), frozenset((A,)), 100, 0.0)
    assert not watch.has_room(A, 100, FLOW)
    assert watch.has_room(B, 100, FLOW)


def test_a_few_are_always_under_way() -> None:
    watch = PrefillWatch(0.001)
    for i in range(AT_LEAST):
        assert watch.has_room(A, 50_000, FLOW)
        watch.start(RequestId(i), BOTH, 50_000, 0.0)
    watch.look(1e6)
    assert not watch.has_room(A, 1, FLOW)


def test_a_node_that_is_late_gets_no_more_until_it_has_caught_up() -> None:
    watch = PrefillWatch(2.0)
    for i in range(5):
        watch.start(RequestId(i), frozenset((A,)), 100, 0.0)
    watch.look(1.0)
    assert watch.has_room(A, 100, FLOW)
    watch.look(10.0)
    assert not watch.has_room(A, 100, FLOW), "500 tokens took over 10 s"
    assert watch.has_room(B, 100, FLOW)
    assert watch.computed(RequestId(0), 10.0)
    assert not watch.computed(RequestId(0), 11.0), "only the first token counts"


def test_what_is_gone_leaves_nothing() -> None:
    watch = PrefillWatch(2.0)
    for i in range(30):
        watch.start(RequestId(i), BOTH, 100, 0.0)
    assert not watch.has_room(A, 1, FLOW)
    for i in range(30):
        watch.leave(RequestId(i))
    watch.forget(A)
    watch.look(1e6)
    assert watch.has_room(A, 2000, FLOW)
    assert watch.has_room(B, 2000, FLOW)


@pytest.mark.parametrize("slower", [1.0, 20.0])
@given(
    tokens_per_s=st.floats(10.0, 5000.0),
    way_s=st.floats(0.0, 1.0),
    prompts=st.lists(st.integers(1, 400), min_size=200, max_size=200),
)
def test_prompts_take_about_the_patience_and_the_node_never_idles(
    slower: float, tokens_per_s: float, way_s: float, prompts: list[int]
) -> None:
    """One node in order, after a way of `way_s`, with all prompts there from the start; the flow
    promises `slower` times too much."""
    patience_s = 4.0
    watch = PrefillWatch(patience_s)
    waiting, on_node = deque(enumerate(prompts)), deque[tuple[int, int, float, float]]()
    now_s, free_s, took = 0.0, 0.0, []
    while waiting or on_node:
        watch.look(now_s)
        while waiting and watch.has_room(A, waiting[0][1], slower * tokens_per_s):
            number, tokens = waiting.popleft()
            watch.start(RequestId(number), frozenset((A,)), tokens, now_s)
            begins_s = max(free_s, now_s + way_s / 2)
            free_s = begins_s + tokens / tokens_per_s
            on_node.append((number, tokens, now_s, free_s + way_s / 2))
        number, tokens, sent_s, now_s = on_node.popleft()
        assert watch.computed(RequestId(number), now_s)
        took.append((number, now_s - sent_s))
    # What was let in on the flow's word is through after that many tokens.
    settled = [t for number, t in took if number >= 150]
    biggest_s = max(prompts) / tokens_per_s
    if sum(prompts[:100]) / tokens_per_s > slower * patience_s + 20:
        assert max(settled) <= 2.0 * (patience_s + way_s) + 2 * biggest_s
    wasted_s = now_s - sum(prompts) / tokens_per_s
    assert wasted_s <= way_s + 0.1 * now_s + 200 * max(0.0, way_s - patience_s)
