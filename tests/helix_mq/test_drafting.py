"""Drafting: the index finds what a plain search finds, and drafts follow what was right lately."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq import drafting
from helix_mq.drafting import (
    FEWEST_SLOTS,
    FIRST_DRAFTS,
    INDEXED_AT_ONCE,
    LONGEST_MATCH,
    LONGEST_REST,
    MOST_PER_SLOT,
    PLACES_TRIED,
    SHORTEST_MATCH,
    Drafter,
    TokenIndex,
)
from helix_mq.messages.data import MAX_DRAFTS

TEXTS = st.lists(st.integers(0, 4) | st.just((1 << 31) - 1), max_size=60)


def naive(tokens: list[int], most: int) -> list[int]:
    """Every earlier place of the last two tokens, latest first; the longest match among the first
    PLACES_TRIED, of equal ones the latest."""
    places = [
        end
        for end in range(len(tokens) - 1, SHORTEST_MATCH - 1, -1)
        if tokens[end - SHORTEST_MATCH : end] == tokens[-SHORTEST_MATCH:]
    ][:PLACES_TRIED]
    best = max(places, key=lambda end: matched(tokens, end), default=0)
    if not best:
        return []
    text = list(tokens)
    for i in range(most):
        text.append(text[best + i])
    return text[len(tokens) :]


def matched(tokens: list[int], end: int) -> int:
    length = SHORTEST_MATCH
    while (
        length < min(LONGEST_MATCH, end)
        and tokens[end - length - 1] == tokens[len(tokens) - length - 1]
    ):
        length += 1
    return length


@given(TEXTS, st.lists(st.integers(0, 60), max_size=4), st.integers(0, 12))
def test_the_index_finds_what_a_plain_search_finds(
    text: list[int], cuts: list[int], most: int
) -> None:
    index = TokenIndex()
    at = 0
    for cut in sorted({*cuts, len(text)}):
        index.extend(text[at:cut])
        assert index.link()
        at = max(at, min(cut, len(text)))
        assert index.continuation(most) == naive(text[:at], most)


def follow(drafter: Drafter, text: list[int], prompt: int, most: int = MAX_DRAFTS) -> list[int]:
    """A model that says `text` from `prompt` on; gives the number of drafts of each pass."""
    passes = []
    at = prompt
    while at < len(text):
        drafts = drafter.draft((text[:prompt], text[prompt:at]), most)
        assert len(drafts) <= most
        right = 0
        while right < len(drafts) and at + right < len(text) and drafts[right] == text[at + right]:
            right += 1
        at += right + 1
        assert drafter.accepted(at) == right or at > len(text)
        passes.append(len(drafts))
    return passes


def test_a_text_that_repeats_takes_few_passes() -> None:
    line = list(range(40))
    passes = follow(Drafter(), line * 6, 42)
    assert passes[0] == FIRST_DRAFTS
    assert passes[2] == MAX_DRAFTS
    assert len(passes) < 20


def test_what_is_never_right_is_hardly_tried() -> None:
    # The same two tokens again and again, another one behind them each time.
    text = [t for i in range(400) for t in (1, 2, 1000 + i)]
    passes = follow(Drafter(), text, 6)
    assert sum(passes) < 2 * len(passes) / LONGEST_REST + 10
    assert max(passes) <= FIRST_DRAFTS


def test_after_a_change_of_text_it_comes_back() -> None:
    noise = [t for i in range(60) for t in (1, 2, 1000 + i)]
    passes = follow(Drafter(), noise + list(range(100, 130)) * 12, 6)
    assert max(passes[-10:]) == MAX_DRAFTS


def test_few_of_many_right_makes_shorter_drafts() -> None:
    # Two of each continuation are right.
    text = [t for i in range(50) for t in (1, 2, 3, 4, 1000 + i, 2000 + i)]
    passes = follow(Drafter(), text, 12)
    assert max(passes[10:]) <= 3


@given(TEXTS, st.integers(1, 8))
def test_no_more_than_asked_and_nothing_known_beforehand(text: list[int], most: int) -> None:
    follow(Drafter(), text, 0, most)


def test_a_long_prompt_is_taken_in_over_some_calls() -> None:
    prompt = list(range(100)) * (INDEXED_AT_ONCE // 50)
    drafter = Drafter()
    output: list[int] = []
    calls = 0
    while not (drafts := drafter.draft((prompt, output))):
        output.append(len(output) % 100)
        calls += 1
    assert calls == 1
    assert drafts[0] == len(output)


def test_none_is_asked_for() -> None:
    assert Drafter().draft(([1, 2] * 8,), 0) == []


def test_a_text_may_outgrow_its_slots() -> None:
    draw = random.Random(4)
    text: list[int] = []
    index = TokenIndex()
    for _ in range(FEWEST_SLOTS * MOST_PER_SLOT):
        # Two of three pieces are quotations.
        at = draw.randrange(len(text) + 1)
        piece = text[at : at + 9] if draw.random() < 0.7 else [draw.randrange(300)]
        text += piece or [7]
        index.extend(piece or [7])
        linked = index.link(300)
        if not linked:
            assert index.continuation(5) == []
            assert index.link(len(text))
        if draw.random() < 0.1:
            assert index.continuation(5) == naive(text, 5)
    assert len(text) > 4 * FEWEST_SLOTS * MOST_PER_SLOT


def test_of_a_long_text_the_older_half_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "MOST_TOKENS", 4096)
    index, text = TokenIndex(), [n * n % 5003 for n in range(30_000)]
    drafter, sizes = Drafter(), []
    for at in range(0, len(text), 64):
        index.extend(text[at : at + 64])
        assert len(index) == at + len(text[at : at + 64])
        sizes.append(index.nbytes)
        drafter.draft((text[:100], text[100 : at + 64]), 8)
    # Tokens, places, and slots for at most twice as many.
    assert max(sizes) <= 4096 * (4 + 4 + 8)
    # What is not too long ago is found, also by a sequence that is drafted from all the while.
    again = [*text, *text[-1000:-990]]
    index.extend(again[len(text) :])
    assert index.link(5000)
    assert index.continuation(3) == text[-990:-987]
    drafts = [drafter.draft((again[:100], again[100:]), 8) for _ in range(LONGEST_REST + 1)]
    assert text[-990:-986] in [found[:4] for found in drafts]


def test_a_token_of_a_long_text_takes_few_bytes() -> None:
    index = TokenIndex()
    index.extend([n * n % 49_999 for n in range(100_000)])
    assert index.link(100_000)
    assert index.nbytes <= 12 * 100_000
