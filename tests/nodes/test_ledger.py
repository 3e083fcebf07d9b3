"""The ledger: late rows of released or superseded attempts never open a sequence again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_mq.ids import Attempt, RequestId
from helix_mq.layers import LayerRange
from nodes.batching import SeqKey
from nodes.ledger import Ledger, Verdict

LAYERS = LayerRange(2, 5)
OTHERS = (LAYERS, LayerRange(2, 5), LayerRange(2, 6))
"""The second is equal and another object."""


def key(request: int, attempt: int = 0) -> SeqKey:
    return SeqKey(RequestId(request), Attempt(attempt))


def test_rows_must_follow_each_other() -> None:
    ledger = Ledger()
    assert ledger.judge(key(1), 0, LAYERS) is Verdict.OPEN
    ledger.open(key(1), LAYERS, 0)
    ledger.advance(key(1), 0, 7)
    assert ledger.judge(key(1), 7, LAYERS) is Verdict.CONTINUE
    assert ledger.judge(key(1), 8, LAYERS) is Verdict.OUT_OF_ORDER
    assert ledger.judge(key(1), 6, LAYERS) is Verdict.OUT_OF_ORDER
    assert ledger.judge(key(1), 7, LayerRange(2, 6)) is Verdict.WRONG_LAYERS


def test_a_release_that_overtakes_the_first_row_still_counts() -> None:
    ledger = Ledger()
    assert ledger.close(key(1, 3)) is False
    assert ledger.judge(key(1, 3), 0, LAYERS) is Verdict.STALE
    assert ledger.judge(key(1, 2), 0, LAYERS) is Verdict.STALE
    assert ledger.judge(key(1, 4), 0, LAYERS) is Verdict.OPEN


def test_a_newer_attempt_closes_the_older_one() -> None:
    ledger = Ledger()
    ledger.open(key(1, 0), LAYERS, 0)
    older = ledger.open(key(1, 1), LAYERS, 0)
    assert older == [key(1, 0)]
    assert ledger.judge(key(1, 0), 0, LAYERS) is Verdict.STALE
    assert ledger.close(key(1, 0)) is True
    assert ledger.judge(key(1, 1), 0, LAYERS) is Verdict.CONTINUE


def test_a_gap_at_the_start_is_out_of_order() -> None:
    assert Ledger().judge(key(1), 16, LAYERS) is Verdict.OUT_OF_ORDER


def test_expiry_and_closing_all() -> None:
    ledger = Ledger()
    ledger.open(key(1), LAYERS, 1_000)
    ledger.open(key(2), LAYERS, 0)
    assert ledger.expired(999) == []
    assert ledger.expired(1_000) == [key(1)]
    assert ledger.close_all() == [key(1), key(2)]
    assert len(ledger) == 0
    assert ledger.judge(key(2), 0, LAYERS) is Verdict.STALE


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=20))
def test_who_expired_is_named_until_closed(stories: list[tuple[int, bool]]) -> None:
    """Each opens a sequence with that deadline, 0 for none, and closes the oldest or does not."""
    ledger, deadlines = Ledger(), dict[SeqKey, int]()
    for now_ms, (deadline_ms, close) in enumerate(stories):
        ledger.open(key(now_ms), LAYERS, deadline_ms)
        deadlines[key(now_ms)] = deadline_ms
        if close:
            oldest = next(iter(deadlines))
            ledger.close(oldest)
            del deadlines[oldest]
        due = [s for s, deadline in deadlines.items() if 0 < deadline <= now_ms]
        assert ledger.expired(now_ms) == due
        assert ledger.any_open([key(99), *deadlines]) is bool(deadlines)


@given(
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 16), st.integers(-3, 20)), min_size=1, max_size=20),
)
def test_only_the_drafts_of_the_last_row_are_taken_back(
    prompt: int, rows: list[tuple[int, int]]
) -> None:
    """Rows of one token and some drafts, each tried `offset` behind the start of the one before."""
    ledger = Ledger()
    ledger.open(key(1), LAYERS, 0)
    ledger.advance(key(1), 0, 1 + prompt)
    first, end = 1 + prompt, 1 + prompt
    for drafts, offset in rows:
        position = first + offset
        fits = first <= position <= end
        expected = Verdict.CONTINUE if fits else Verdict.OUT_OF_ORDER
        assert ledger.judge(key(1), position, LAYERS) is expected
        if fits:
            ledger.advance(key(1), position, 1 + drafts, drafts=drafts)
            first, end = position + 1, position + 1 + drafts


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["row", "row", "row", "close"]),
            st.integers(0, 1),
            st.integers(0, 2),
            st.integers(0, 6),
            st.integers(1, 3),
            st.integers(0, 2),
            st.sampled_from(OTHERS),
        ),
        max_size=40,
    )
)
def test_following_is_judging_and_advancing_in_one(
    events: list[tuple[str, int, int, int, int, int, LayerRange]],
) -> None:
    """Two ledgers with the same rows: one is asked in two steps, the other follows where it can."""
    slow, fast = Ledger(), Ledger()
    for what, request, attempt, position, count, drafts, layers in events:
        seq = key(request, attempt)
        if what == "close":
            assert slow.close(seq) == fast.close(seq)
            continue
        verdict = slow.judge(seq, position, layers)
        assert fast.judge(seq, position, layers) is verdict
        followed = fast.follow(request, attempt, position, count, layers, attempt, drafts)
        assert followed == (seq if verdict is Verdict.CONTINUE else None)
        if verdict is Verdict.OPEN:
            assert slow.open(seq, layers, 0) == fast.open(seq, layers, 0)
            fast.advance(seq, position, count, attempt, drafts)
        if verdict in (Verdict.OPEN, Verdict.CONTINUE):
            slow.advance(seq, position, count, attempt, drafts)
            assert slow.epoch(seq) == fast.epoch(seq)
    assert slow.sequences() == fast.sequences()


def test_a_row_with_fewer_drafts_is_followed_where_it_ends() -> None:
    ledger = Ledger()
    ledger.open(key(1), LAYERS, 0)
    ledger.advance(key(1), 7, 5, drafts=4)
    assert not ledger.shorten(key(2), 7, 5, 1)
    assert not ledger.shorten(key(1), 7, 4, 1)
    assert ledger.shorten(key(1), 7, 5, 1)
    places = [p for p in range(16) if ledger.judge(key(1), p, LAYERS) is Verdict.CONTINUE]
    assert places == [8, 9]
