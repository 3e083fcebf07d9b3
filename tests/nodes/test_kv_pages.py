"""No page is ever lost or in two places, whatever the order of opening, growing and freeing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helix_mq.errors import KvExhausted
from helix_mq.layers import LayerRange
from helix_mq.prefix_blocks import BlockNames
from nodes.kv_pages import LayerPagePool

PAGES = 40


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = LayerPagePool(PAGES, page_tokens=4)
        self.model: dict[int, tuple[int, int]] = {}  # sequence -> (layers, pages per layer)
        self.next = 0
        self.pages = PAGES
        self.memory = np.zeros(PAGES, np.int64)
        """What a page holds: its sequence and place, written when it is handed out."""

    def used(self) -> int:
        return sum(layers * pages for layers, pages in self.model.values())

    @rule(first=st.integers(0, 5), count=st.integers(1, 5))
    def open(self, first: int, count: int) -> None:
        self.pool.open(self.next, LayerRange(first, first + count))
        self.model[self.next] = (count, 0)
        self.next += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tokens=st.integers(0, 50))
    def ensure(self, data: st.DataObject, tokens: int) -> None:
        seq = data.draw(st.sampled_from(sorted(self.model)))
        layers, have = self.model[seq]
        need = max(have, -(-tokens // 4))
        before = self.pool.table(seq).copy()
        if (need - have) * layers > self.pages - self.used():
            with pytest.raises(KvExhausted):
                self.pool.ensure(seq, tokens)
            assert np.array_equal(self.pool.table(seq), before)
        else:
            self.pool.ensure(seq, tokens)
            self.model[seq] = (layers, need)
            assert np.array_equal(self.pool.table(seq)[:, :have], before)
            table = self.pool.table(seq)
            self.memory[table] = self.contents(seq, table.shape)

    @staticmethod
    def contents(seq: int, shape: tuple[int, ...]) -> np.ndarray:
        rows, columns = np.indices(shape)
        return 10_000 * seq + 100 * rows + columns + 1

    @rule(pages=st.integers(1, 2 * PAGES))
    def resize(self, pages: int) -> None:
        if pages < self.used():
            with pytest.raises(ValueError, match="too few"):
                self.pool.resize(pages)
            return
        memory = np.zeros(pages, np.int64)
        kept = min(pages, self.pages)
        memory[:kept] = self.memory[:kept]
        sources, targets = self.pool.resize(pages)
        assert (sources >= pages).all()
        memory[targets] = self.memory[sources]
        self.pages, self.memory = pages, memory

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.model)))
        layers, pages = self.model.pop(seq)
        assert self.pool.free(seq) == layers * pages
        assert seq not in self.pool

    @invariant()
    def accounted_for(self) -> None:
        self.pool.check()
        assert self.pool.free_pages == self.pages - self.used()
        for seq, (layers, pages) in self.model.items():
            assert self.pool.table(seq).shape == (layers, pages)
            assert self.pool.room_tokens(seq) == pages * 4
            table = self.pool.table(seq)
            assert np.array_equal(self.memory[table], self.contents(seq, table.shape))
        statistics = self.pool.statistics()
        assert statistics.used_pages == self.used()
        assert statistics.peak_used_pages >= self.used()
        assert statistics.sequences == len(self.model)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_ensure_is_all_or_nothing_and_says_what_is_missing() -> None:
    pool = LayerPagePool(5)
    pool.open("a", LayerRange(3, 6))
    pool.ensure("a", 16)
    with pytest.raises(KvExhausted, match=r"17 tokens in layers 3-5 need 3 more KV pages, 2 of 5"):
        pool.ensure("a", 17)
    assert pool.free_pages == 2
    pool.check()


def test_a_used_pool_hands_out_the_lowest_pages_first() -> None:
    pool = LayerPagePool(100)
    pool.open("a", LayerRange(0, 2))
    pool.ensure("a", 32)
    assert pool.table("a").tolist() == [[0, 1], [2, 3]]
    pool.free("a")
    pool.open("b", LayerRange(0, 1))
    pool.ensure("b", 1)
    assert pool.table("b").tolist() == [[0]]


def test_a_resized_pool_still_hands_out_the_lowest_pages_first() -> None:
    pool = LayerPagePool(4)
    pool.open("a", LayerRange(0, 1))
    pool.ensure("a", 32)
    pool.resize(8)
    pool.open("b", LayerRange(0, 1))
    pool.ensure("b", 48)
    assert pool.table("b").tolist() == [[2, 3, 4]]


def test_check_notices_a_page_in_two_places() -> None:
    pool = LayerPagePool(10)
    pool.open("a", LayerRange(0, 1))
    pool.ensure("a", 32)
    pool.table("a")[0, 1] = pool.table("a")[0, 0]
    with pytest.raises(AssertionError, match=r"two places: \[0\]; lost: \[1\]"):
        pool.check()


@pytest.mark.parametrize("args", [(0, 16), (-1, 16), (1 << 31, 16), (10, 0), (10, 1 << 17)])
def test_sizes_are_bounded(args: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"is not in 1\.\."):
        LayerPagePool(*args)


def test_a_sequence_opens_once() -> None:
    pool = LayerPagePool(10)
    pool.open("a", LayerRange(0, 1))
    with pytest.raises(ValueError, match="already open"):
        pool.open("a", LayerRange(0, 1))


def test_drafts_have_the_pages_that_their_token_takes() -> None:
    pool = LayerPagePool(PAGES, page_tokens=4)
    pool.open("others", LayerRange(0, 1))
    pool.ensure("others", 4 * 35)
    pool.open("a", LayerRange(0, 2))
    pool.ensure("a", 3)
    # A tenth of all pages stays: of three unused ones none can be had in both layers.
    assert [pool.draft_room("a", tokens, 9) for tokens in (3, 4, 5)] == [1, 0, 3]
    assert pool.draft_room("a", 3, 1) == 1
    pool.free("others")
    assert pool.draft_room("a", 3, 9) == 9
    assert pool.draft_room("a", 3, 200) == 1 + (PAGES - 2 - 4) // 2 * 4
    assert pool.draft_room("unknown", 3, 5) == 5


def test_drafts_drive_out_nothing_that_is_kept() -> None:
    blocks, tokens = BlockNames(0, bytes(range(32))), 128
    pool = LayerPagePool(PAGES, page_tokens=4)
    pool.open("a", LayerRange(0, 1))
    pool.name("a", blocks)
    pool.ensure("a", tokens)
    pool.publish("a", tokens)
    pool.free("a")
    assert (pool.free_pages, pool.statistics().cached_pages) == (PAGES, 32)
    pool.open("b", LayerRange(0, 1))
    pool.ensure("b", 4)
    # Seven unused ones, of which four stay.
    assert pool.draft_room("b", 4, 16) == 3 * 4
    pool.ensure("b", 4 * 5)
    assert pool.draft_room("b", 4 * 5, 16) == 0
    # A token drives kept ones out, and its drafts have the rest of its page.
    pool.ensure("b", 4 * 8)
    assert pool.draft_room("b", 4 * 8 + 1, 16) == 3
    assert pool.statistics().cached_pages == 32
