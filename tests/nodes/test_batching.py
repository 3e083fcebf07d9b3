"""The batcher: order, budgets, spreading, blocked links; and nothing lost or repeated, ever."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.ids import Attempt, RequestId
from helix_mq.layers import LayerRange
from nodes.batching import Batcher, BatchLimits, SeqKey, Work

LAYERS = LayerRange(0, 4)


def cut(payload: range, start: int, stop: int) -> range:
    return payload[start:stop]


def work(request: int, position: int, count: int, *, sample: bool = True, to: str = "b") -> Work:
    seq = SeqKey(RequestId(request), Attempt(0))
    return Work(seq, position, count, LAYERS, to, sample, range(position, position + count))


def test_decodes_go_before_prefill_chunks() -> None:
    batcher = Batcher(cut, BatchLimits(prefill_tokens=8))
    batcher.add(work(1, 0, 100))
    batcher.add(work(2, 50, 1))
    batch = batcher.next_batch(open_requests=2, depth=1)
    assert [(w.seq.request, w.count) for w in batch] == [(2, 1), (1, 8)]


def test_a_long_prompt_is_cut_and_only_its_last_piece_samples() -> None:
    batcher = Batcher(cut, BatchLimits(prefill_tokens=64))
    batcher.add(work(1, 0, 150))
    pieces = []
    while batch := batcher.next_batch(open_requests=1, depth=1):
        pieces += batch
    assert [(p.position, p.count, p.sample) for p in pieces] == [
        (0, 64, False),
        (64, 64, False),
        (128, 22, True),
    ]
    assert [list(p.payload) for p in pieces] == [
        list(range(64)),
        list(range(64, 128)),
        list(range(128, 150)),
    ]


def test_prompts_share_the_budget_in_turn() -> None:
    batcher = Batcher(cut, BatchLimits(prefill_tokens=64))
    batcher.add(work(1, 0, 200))
    batcher.add(work(2, 0, 10))
    first = batcher.next_batch(open_requests=2, depth=1)
    second = batcher.next_batch(open_requests=2, depth=1)
    assert [w.seq.request for w in first] == [1]
    assert [(w.seq.request, w.count) for w in second] == [(2, 10), (1, 54)]


def test_decodes_are_spread_over_the_stages() -> None:
    """No more in a step than `spread` even shares of those open, so that no convoy forms."""
    for spread, expected in ((1.0, [4, 4, 4, 0]), (2.5, [10, 2, 0, 0]), (0.1, [2, 2, 2, 2])):
        batcher = Batcher(cut, BatchLimits(min_decodes=2, spread=spread))
        for request in range(12):
            batcher.add(work(request, 9, 1))
        sizes = [len(batcher.next_batch(open_requests=12, depth=3)) for _ in range(4)]
        assert sizes == expected


@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 30), st.integers(1, 9),
    st.sampled_from([0.1, 1.0, 2.5, 5.0]),
)  # fmt: skip
def test_decodes_go_past_the_line_where_they_would_be_the_next_batch(
    decodes: int, depth: int, most: int, least: int, spread: float
) -> None:
    limits = BatchLimits(max_rows=most, min_decodes=least, spread=spread)
    by_line, past = Batcher(cut, limits), Batcher(cut, limits)
    by_line.extend(work(request, 9, 1) for request in range(decodes))
    whole = len(by_line.next_batch(open_requests=decodes, depth=depth)) == decodes
    assert past.passes(decodes, depth) is whole
    if whole:
        past.passed(decodes)
        assert past.statistics() == by_line.statistics()
        assert past.only_decodes
    past.add(work(99, 0, 5))
    assert not past.passes(decodes, depth)


def test_a_blocked_link_holds_prefill_but_not_decodes() -> None:
    batcher = Batcher(cut)
    batcher.add(work(1, 0, 30, to="slow"))
    batcher.add(work(2, 5, 1, to="slow"))
    batcher.add(work(3, 0, 20, to="fast"))
    batch = batcher.next_batch(open_requests=3, depth=1, blocked={"slow"})
    assert sorted(w.seq.request for w in batch) == [2, 3]
    batch = batcher.next_batch(open_requests=3, depth=1)
    assert [w.seq.request for w in batch] == [1]


def test_held_decodes_keep_their_places_and_nothing_else_waits_for_them() -> None:
    batcher = Batcher(cut)
    batcher.extend([work(1, 5, 1), work(2, 5, 1), work(3, 5, 1), work(4, 0, 9)])
    held = {SeqKey(RequestId(n), Attempt(0)) for n in (1, 3)}
    batch = batcher.next_batch(open_requests=4, depth=1, held=held)
    assert [w.seq.request for w in batch] == [2, 4]
    assert batcher.next_batch(open_requests=4, depth=1, held=held) == []
    assert (batcher.statistics().waiting_rows, batcher.statistics().waiting_tokens) == (2, 2)
    batch = batcher.next_batch(open_requests=4, depth=1)
    assert [w.seq.request for w in batch] == [1, 3]


def test_removing_gives_back_what_waited() -> None:
    batcher = Batcher(cut)
    batcher.add(work(1, 0, 30))
    batcher.add(work(1, 30, 1))
    batcher.add(work(2, 0, 5))
    gone = batcher.remove(SeqKey(RequestId(1), Attempt(0)))
    assert [w.count for w in gone] == [30, 1]
    statistics = batcher.statistics()
    assert (statistics.waiting_rows, statistics.waiting_tokens) == (1, 5)


def test_decodes_with_drafts_are_decodes_and_never_cut() -> None:
    batcher = Batcher(cut, BatchLimits(prefill_tokens=3))
    drafts = msgspec.structs.replace(work(1, 50, 9), drafts=tuple(range(8)))
    batcher.extend([work(2, 0, 100), drafts, work(3, 9, 1)])
    batch = batcher.next_batch(open_requests=3, depth=1)
    assert [(w.seq.request, w.count) for w in batch] == [(1, 9), (3, 1), (2, 3)]
    assert batch[0] is drafts
    assert batcher.statistics().decode_rows == 2
    assert batcher.statistics().waiting_tokens == 97
    batcher.remove(SeqKey(RequestId(2), Attempt(0)))
    assert batcher.statistics().waiting_tokens == 0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 70)), max_size=30),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(1, 6),
    st.floats(0.1, 10),
)
def test_every_token_comes_out_once_in_order_and_within_budget(
    arrivals: list[tuple[int, int]], budget: int, rows: int, depth: int, spread: float
) -> None:
    limits = BatchLimits(prefill_tokens=budget, max_rows=rows, min_decodes=1, spread=spread)
    batcher = Batcher(cut, limits)
    position: dict[int, int] = {}
    for request, count in arrivals:
        at = position.get(request, 0)
        batcher.add(work(request, at, count))
        position[request] = at + count
    seen: dict[int, int] = {}
    while batch := batcher.next_batch(open_requests=len(position), depth=depth):
        decodes = [w for w in batch if w.is_decode]
        assert len(decodes) <= rows
        assert len(batch) - len(decodes) <= rows
        assert sum(w.count for w in batch) - len(decodes) <= budget
        assert len({w.seq for w in batch}) == len(batch)
        for w in batch:
            assert w.position == seen.get(w.seq.request, 0)
            assert list(w.payload) == list(range(w.position, w.position + w.count))
            seen[w.seq.request] = w.position + w.count
    assert seen == position
    assert len(batcher) == 0
    assert batcher.statistics().waiting_tokens == 0
