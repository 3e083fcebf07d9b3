"""Shared pages hold what their names say, are never written again, and are never lost."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helix_mq.errors import KvExhausted
from helix_mq.layers import LayerRange
from helix_mq.messages.data import BLOCK_TOKENS
from helix_mq.prefix_blocks import BlockNames, name_blocks
from nodes.kv_pages import LayerPagePool

KEY = b"k" * 32
LAYERS = 3
PROMPTS = [
    tuple([1] * 64 + [2] * 64 + [3] * 64 + [4] * 10),
    tuple([1] * 64 + [2] * 64 + [5] * 128),
    tuple([1] * 64 + [6] * 30),
    tuple([7] * 200),
]
RANGES = [LayerRange(0, 3), LayerRange(1, 3), LayerRange(2, 3), LayerRange(0, 1)]


class Held:
    def __init__(self, prompt: tuple[int, ...], layers: LayerRange, done: int) -> None:
        self.prompt, self.layers, self.done = prompt, layers, done


class SharingMachine(RuleBasedStateMachine):
    """Sequences that compute prompts in chunks: what a page holds is the prompt up to its end."""

    page_tokens = 32

    def __init__(self) -> None:
        super().__init__()
        self.pages = 48
        self.pool = LayerPagePool(self.pages, self.page_tokens)
        self.held: dict[int, Held] = {}
        self.memory: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.next = 0

    @rule(prompt=st.sampled_from(PROMPTS), layers=st.sampled_from(RANGES), skip=st.integers(0, 4))
    def open(self, prompt: tuple[int, ...], layers: LayerRange, skip: int) -> None:
        names = name_blocks(KEY, "", prompt)
        tokens = min(skip * BLOCK_TOKENS, len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        name = names[: tokens // 4][-16:]
        if tokens == 0 or not self.pool.resume(self.next, layers, tokens, name):
            self.pool.open(self.next, layers)
            tokens = 0
        self.held[self.next] = Held(prompt, layers, tokens)
        self.next += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 150), damaged=st.booleans())
    def compute(self, data: st.DataObject, count: int, damaged: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held[seq]
        stop = min(len(held.prompt), held.done + count)
        if stop == held.done:
            return
        names = name_blocks(KEY, "", held.prompt)
        self.pool.name(seq, BlockNames(0, names).cut(held.done, stop))
        try:
            self.pool.ensure(seq, stop)
        except KvExhausted:
            self.free(seq)
            return
        assert self.pool.shared_tokens(seq) <= held.done
        for row, layer in enumerate(range(held.layers.first, held.layers.end)):
            for at in range(held.done // self.page_tokens, -(-stop // self.page_tokens)):
                end = min(stop, (at + 1) * self.page_tokens)
                self.memory[self.pool.table(seq)[row, at]] = (layer, held.prompt[:end])
        held.done = stop
        if damaged:
            self.pool.distrust(seq)
        else:
            self.pool.publish(seq, stop)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.free(data.draw(st.sampled_from(sorted(self.held))))

    def free(self, seq: int) -> None:
        self.pool.free(seq)
        del self.held[seq]

    @rule(pages=st.integers(24, 60))
    def resize(self, pages: int) -> None:
        if pages < self.pages - self.pool.free_pages:
            return
        sources, targets = self.pool.resize(pages)
        moved = [self.memory.get(source) for source in sources.tolist()]
        for target, content in zip(targets.tolist(), moved, strict=True):
            if content is not None:
                self.memory[target] = content
        self.pages = pages

    @invariant()
    def accounted_for(self) -> None:
        self.pool.check()
        for seq, held in self.held.items():
            table = self.pool.table(seq)
            for row, layer in enumerate(range(held.layers.first, held.layers.end)):
                for at in range(-(-held.done // self.page_tokens)):
                    end = min(held.done, (at + 1) * self.page_tokens)
                    content = self.memory[table[row, at]]
                    assert content[0] == layer
                    assert content[1][:end] == held.prompt[:end]
        # Whoever comes may have every page that no sequence holds.
        used = {int(i) for s in self.held for i in self.pool.table(s).ravel()}
        assert self.pool.free_pages == self.pages - len(used)

    def teardown(self) -> None:
        for seq in list(self.held):
            self.free(seq)
        self.pool.check()
        assert self.pool.free_pages == self.pages
        self.pool.open("all", LayerRange(0, 1))
        self.pool.ensure("all", self.pages * self.page_tokens)
        self.pool.check()
        assert self.pool.statistics().cached_pages == 0


class LargePagesMachine(SharingMachine):
    page_tokens = 128


TestSharing = SharingMachine.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLargePages = LargePagesMachine.TestCase
TestLargePages.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def computed(pool: LayerPagePool, seq: object, prompt: tuple[int, ...], layers: LayerRange) -> None:
    pool.open(seq, layers)
    pool.name(seq, BlockNames(0, name_blocks(KEY, "", prompt)))
    pool.ensure(seq, len(prompt))
    pool.publish(seq, len(prompt))


def last_name(prompt: tuple[int, ...]) -> bytes:
    return name_blocks(KEY, "", prompt)[-16:]


def test_what_an_ended_sequence_computed_is_had_by_the_next_one() -> None:
    pool = LayerPagePool(64)
    prompt = tuple(range(128))
    computed(pool, "a", prompt, LayerRange(0, 3))
    pages = pool.table("a").copy()
    pool.free("a")
    assert pool.free_pages == 64
    assert pool.statistics().cached_pages == 24
    assert pool.resume("b", LayerRange(1, 3), 128, last_name(prompt))
    assert np.array_equal(pool.table("b"), pages[1:])
    assert pool.free_pages == 64 - 16
    pool.check()


def test_layers_that_were_not_computed_are_not_there() -> None:
    pool = LayerPagePool(64)
    prompt = tuple(range(64))
    computed(pool, "a", prompt, LayerRange(0, 2))
    assert not pool.resume("b", LayerRange(0, 3), 64, last_name(prompt))
    assert "b" not in pool
    computed(pool, "b", prompt, LayerRange(0, 3))
    assert pool.resume("c", LayerRange(0, 3), 64, last_name(prompt))
    pool.check()


def test_a_name_at_another_place_is_not_there() -> None:
    pool = LayerPagePool(64)
    prompt = tuple(range(128))
    computed(pool, "a", prompt, LayerRange(0, 1))
    for tokens in (64, 192, 100, 0):
        assert not pool.resume("b", LayerRange(0, 1), tokens, last_name(prompt))


def test_what_was_wanted_longest_ago_goes_first_and_children_before_parents() -> None:
    pool = LayerPagePool(12)
    one, two = tuple(range(128)), tuple(range(1000, 1064))
    for seq, prompt in (("a", one), ("b", two)):
        computed(pool, seq, prompt, LayerRange(0, 1))
        pool.free(seq)
    pool.open("c", LayerRange(0, 1))
    pool.ensure("c", 16)
    assert not pool.resume("d", LayerRange(0, 1), 128, last_name(one))
    assert pool.resume("d", LayerRange(0, 1), 64, last_name(one[:64]))
    assert pool.resume("e", LayerRange(0, 1), 64, last_name(two))
    pool.ensure("c", 64)
    with pytest.raises(KvExhausted, match="need 1 more KV pages, 0 of 12 are free"):
        pool.ensure("c", 65)
    pool.check()


def test_check_notices_a_user_who_is_not_counted() -> None:
    pool = LayerPagePool(12)
    prompt = tuple(range(64))
    computed(pool, "a", prompt, LayerRange(0, 1))
    assert pool.resume("b", LayerRange(0, 1), 64, last_name(prompt))
    pool._sequences["b"].shared = 0
    with pytest.raises(AssertionError, match="two places"):
        pool.check()
    pool._sequences["b"].shared = 3
    with pytest.raises(AssertionError, match="two places"):
        pool.check()
    del pool._sequences["b"]
    with pytest.raises(AssertionError, match="other users"):
        pool.check()


def test_units_of_a_sequence_may_have_one_name() -> None:
    """A node that makes names up must not have the pages of another lost."""
    layers = LayerRange(0, 2)
    pool = LayerPagePool(32, 16)
    pool.open("a", layers)
    pool.ensure("a", 2 * BLOCK_TOKENS)
    pool.name("a", BlockNames(0, b"x" * 32))
    pool.publish("a", 2 * BLOCK_TOKENS)
    pool.check()
    pool.free("a")
    pool.check()
    pool.open("b", layers)
    pool.ensure("b", 16 * 16)
    pool.check()
    assert pool.statistics().cached_pages == 0


made_up = st.lists(st.sampled_from([bytes([n]) * 16 for n in range(4)]), min_size=1, max_size=5)
Hostile = tuple[str, int, LayerRange, list[bytes], int]
hostile_steps = st.tuples(
    st.sampled_from(["open", "resume", "more", "free", "distrust", "resize"]),
    st.integers(0, 3),
    st.sampled_from(RANGES),
    made_up,
    st.integers(1, 60),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(hostile_steps, max_size=40))
def test_whatever_names_are_made_up_pages_are_accounted_for(steps: list[Hostile]) -> None:
    pool, done = LayerPagePool(40, 32), dict[int, int]()
    for what, seq, layers, names, number in steps:
        if what in ("open", "resume") and seq not in done:
            tokens = number % 5 * BLOCK_TOKENS
            if what == "open" or not pool.resume(seq, layers, tokens, names[-1]):
                pool.open(seq, layers)
                tokens = 0
            done[seq] = tokens
        elif what == "resize":
            with suppress(ValueError):
                pool.resize(max(1, number))
        elif seq not in done:
            continue
        elif what == "free":
            pool.free(seq)
            del done[seq]
        elif what == "distrust":
            pool.distrust(seq)
        else:
            end = done[seq] + len(names) * BLOCK_TOKENS
            pool.name(seq, BlockNames(done[seq], b"".join(names)))
            with suppress(KvExhausted):
                pool.ensure(seq, end)
                pool.publish(seq, end)
                done[seq] = end
        pool.check()
    for seq in done:
        pool.free(seq)
    pool.check()
    assert pool.free_pages == pool.total_pages
    # All of it can be had.
    pool.open("all", LayerRange(0, 1))
    pool.ensure("all", pool.total_pages * pool.page_tokens)
    pool.check()
