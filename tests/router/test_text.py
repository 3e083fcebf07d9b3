"""Stop strings and incremental text against the whole text, in whatever pieces it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.models.detokenizer import PrefixDetokenizer
from helix_mq.models.tokenizer import Tokenizer
from router.text import StopMatcher, TextStream

LETTERS = st.text("ab\n", max_size=12)
STOPS = st.lists(st.text("ab\n", max_size=5), max_size=4)


def ended_by_hand(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The oracle: character by character, over the whole text."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def in_pieces(matcher: StopMatcher, pieces: Sequence[str]) -> tuple[list[str], str | None]:
    given_out = []
    for piece in pieces:
        delta = matcher.push(piece)
        given_out.append(delta.text)
        if delta.finished_by_stop is not None:
            return given_out, delta.finished_by_stop
    return [*given_out, matcher.flush().text], None


@settings(max_examples=500)
@given(st.lists(LETTERS, max_size=8), STOPS)
def test_pieces_add_up_to_the_text_up_to_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    given_out, stop = in_pieces(StopMatcher(stops), pieces)
    assert ("".join(given_out), stop) == ended_by_hand("".join(pieces), stops)


@given(LETTERS, STOPS)
def test_no_more_is_held_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    delta = StopMatcher(stops).push(text)
    if delta.finished_by_stop is None:
        held = text[len(delta.text) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_possible_beginning_is_held_and_let_go() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("abcST").text == "abc"
    assert matcher.push("A").text == "STA"
    assert matcher.push("ST").text == ""
    last = matcher.push("OP and more")
    assert (last.text, last.finished_by_stop) == ("", "STOP")
    assert matcher.push("nothing").text == ""
    assert matcher.flush().text == ""


def test_what_is_complete_first_ends_the_text() -> None:
    matcher = StopMatcher(["a long stop", "long", "ng"])
    delta = matcher.push("say a long stop")
    assert (delta.text, delta.finished_by_stop) == ("say a ", "long")


def test_long_repetitive_stops_cost_little() -> None:
    """A request may bring 16 stop strings of 4,096 characters; its text may go along with them."""
    matcher = StopMatcher(["a" * (4095 - i) + "b" for i in range(16)])
    started_s = time.perf_counter()
    for _ in range(2000):
        matcher.push("aaaa")
    # Measured: 0.06 s; comparing every tail with every stop string takes minutes.
    assert time.perf_counter() - started_s < 5.0


def byte_decode(ids: object) -> str:
    return bytes(ids).decode("utf-8", errors="replace")  # type: ignore[call-overload,no-any-return]


@given(st.text(max_size=20))
def test_no_push_ends_in_half_a_character(text: str) -> None:
    """One token per UTF-8 byte: the worst case."""
    stream = TextStream(PrefixDetokenizer(byte_decode))
    out = [stream.push((byte,)).text for byte in text.encode()]
    out.append(stream.flush().text)
    assert "".join(out) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in out)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_folder)


@settings(max_examples=200)
@given(
    text=st.text("aé日😀 \n", max_size=20),
    stops=st.lists(st.text("aé日😀 \n", max_size=3), max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_token_ids_in_any_pieces(
    tokenizer: Tokenizer, text: str, stops: list[str], sizes: list[int]
) -> None:
    """Bytes of a character and letters of a stop string come apart in every way."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer.detokenizer(), stops)
    out, stop, at = "", None, 0
    for size in sizes * 80:  # at most 80 bytes
        delta = stream.push(ids[at : at + size])
        out, stop, at = out + delta.text, delta.finished_by_stop, at + size
        if stop is not None or at >= len(ids):
            break
    if stop is None:
        last = stream.flush()
        out, stop = out + last.text, last.finished_by_stop
    assert (out, stop) == ended_by_hand(text, stops)


def test_a_stop_string_that_the_last_broken_character_completes(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("x😀", add_special_tokens=False)[:-1]
    stream = TextStream(tokenizer.detokenizer(), ["x\ufffd"])
    assert stream.push(half).text == ""
    last = stream.flush()
    assert (last.text, last.finished_by_stop) == ("", "x\ufffd")
