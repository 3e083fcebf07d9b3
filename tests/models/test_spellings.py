"""Searching in pieces finds what searching in one go finds."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.models import spellings
from helix_mq.models.spellings import Spellings

WORDS = st.lists(st.text(alphabet="<ab>", max_size=7), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """So that most matches lie near a piece's end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spellings, "PIECE_CHARS", 3)
        yield


@given(WORDS, st.text(alphabet="<ab>", max_size=80))
def test_pieces_change_nothing(words: list[str], text: str) -> None:
    longest_first = sorted((w for w in words if w), key=lambda w: -len(w))
    pattern = re.compile("|".join(longest_first))
    whole = [m.span() for m in pattern.finditer(text)] if longest_first else []
    found = Spellings(words)
    assert [m.span() for m in found.find(text)] == whole
    marks = {word: f"({word})" for word in words}
    expected = pattern.sub(lambda m: marks[m.group()], text) if longest_first else text
    assert found.replace(text, marks) == expected


def test_the_longest_counts_though_a_piece_cuts_it() -> None:
    found = Spellings(["<a", "<ab>"])
    for lead in range(12):
        text = "b" * lead + "<ab>"
        assert [m.group() for m in found.find(text)] == ["<ab>"]


def test_nothing_to_find() -> None:
    assert list(Spellings([]).find("text")) == []
    assert list(Spellings([""]).find("text")) == []
    assert Spellings([]).replace("text", {}) == "text"
