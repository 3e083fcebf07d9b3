"""Stop strings and incremental text against the whole text, in whatever pieces it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_mq.models.detokenizer import PrefixDetokenizer
from router.text import StopMatcher, TextStream

LETTERS = st.text("ab\n", max_size=12)


def cut_at_first(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The oracle: the earliest match, the longest stop where several start there."""
    found = [(text.find(s), -len(s), s) for s in stops if s and s in text]
    if not found:
        return text, None
    at, _, stop = min(found)
    return text[:at], stop


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("ab\n", max_size=4), max_size=4))
def test_pieces_add_up_to_the_text_cut_at_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    given_out, stopped = "", None
    for piece in pieces:
        delta = matcher.push(piece)
        given_out += delta.text
        stopped = delta.finished_by_stop
        if stopped:
            break
    if stopped is None:
        delta = matcher.flush()
        given_out += delta.text
        stopped = delta.finished_by_stop
    text, stop = cut_at_first("".join(pieces), stops)
    assert given_out == text
    assert (stopped is None) == (stop is None)


def test_a_possible_beginning_is_held_and_let_go() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("abcST").text == "abc"
    assert matcher.push("A").text == "STA"
    assert matcher.push("ST").text == ""
    last = matcher.push("OP and more")
    assert (last.text, last.finished_by_stop) == ("", "STOP")
    assert matcher.push("nothing").text == ""


def test_an_earlier_shorter_match_wins_over_a_later_longer_one() -> None:
    matcher = StopMatcher(["long stop", "x"])
    delta = matcher.push("ax long stop")
    assert (delta.text, delta.finished_by_stop) == ("a", "x")


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


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_come_out_as_the_whole_would(data: bytes) -> None:
    stream = TextStream(PrefixDetokenizer(byte_decode))
    out = "".join(stream.push((byte,)).text for byte in data) + stream.flush().text
    assert out.replace("\ufffd", "") == byte_decode(data).replace("\ufffd", "")
