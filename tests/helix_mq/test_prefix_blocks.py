"""Names follow the tokens before them, the scope and the key, however a row is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.messages.data import BLOCK_NAME_BYTES, BLOCK_TOKENS, MAX_BLOCK_BYTES
from helix_mq.prefix_blocks import (
    BlockNames,
    cut_names,
    name_blocks,
    names_fit,
    span_names,
    split_names,
)

KEY = b"s" * 32


def test_a_name_says_all_that_is_before_the_blocks_end() -> None:
    ids = list(range(200))
    names = split_names(name_blocks(KEY, "", ids))
    assert len(names) == 3
    assert len(set(names)) == 3
    assert split_names(name_blocks(KEY, "", ids[:130])) == names[:2]
    changed = split_names(name_blocks(KEY, "", [*ids[:70], 999, *ids[71:]]))
    assert changed[0] == names[0]
    assert not set(changed[1:]) & set(names)


def test_keys_and_scopes_do_not_share() -> None:
    ids = [5] * 64
    assert (
        len(
            {name_blocks(KEY, "", ids), name_blocks(KEY, "a", ids), name_blocks(b"t" * 32, "", ids)}
        )
        == 3
    )


def test_short_prompts_have_no_names() -> None:
    assert name_blocks(KEY, "", [1] * (BLOCK_TOKENS - 1)) == b""
    assert span_names(b"", 0, 63) == b""


@given(st.integers(0, 400), st.integers(1, 400), st.data())
def test_a_cut_row_carries_what_a_row_of_that_place_would(
    position: int, count: int, data: st.DataObject
) -> None:
    all_names = name_blocks(KEY, "", list(range(1000)))
    names = span_names(all_names, position, count)
    assert names_fit(names, position, count)
    assert not names_fit(names + b"x" * BLOCK_NAME_BYTES, position, count)
    assert not names_fit(names + b"x", position, count)
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    part = cut_names(names, position, start, stop)
    assert part == span_names(all_names, position + start, stop - start)
    assert BlockNames(position, names).cut(start, stop) == BlockNames(position + start, part)
    every = split_names(all_names)
    ends = list(BlockNames(position, names).ends())
    assert ends == [
        (tokens, every[tokens // BLOCK_TOKENS - 1])
        for tokens in range(BLOCK_TOKENS, 1000, BLOCK_TOKENS)
        if position <= tokens <= position + count
    ]


@pytest.mark.parametrize(("position", "count"), [(0, 100), (64, 1), (65, 64)])
def test_a_row_may_come_without_names(position: int, count: int) -> None:
    assert names_fit(b"", position, count)
    assert BlockNames(position, b"").cut(0, count) == BlockNames(position, b"")
    assert list(BlockNames(position, b"").ends()) == []


def test_more_names_than_a_row_may_carry_are_left_out() -> None:
    most = MAX_BLOCK_BYTES // BLOCK_NAME_BYTES
    names = b"n" * (most + 2) * BLOCK_NAME_BYTES
    assert len(span_names(names, 0, most * BLOCK_TOKENS)) == MAX_BLOCK_BYTES
    assert span_names(names, 64, most * BLOCK_TOKENS) == b""
    assert span_names(names[:16], 0, 128) == b""
