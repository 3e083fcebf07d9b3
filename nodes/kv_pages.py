"""Which KV page belongs to whom: accounting only, no tensors.

The unit is a layer-page: room for `page_tokens` tokens of one layer. All layers of a node draw from
one free list, so a sequence that runs k of the node's layers takes exactly k pages per
`page_tokens` tokens, whatever part of the slice it uses. `ensure` gives all that was asked or
nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from helix_mq.errors import KvExhausted
from helix_mq.layers import LayerRange

SeqKey = Hashable
"""Names a sequence on this node; any hashable value."""

PageTable = npt.NDArray[np.int32]

DEFAULT_PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """One moment of a pool. `peak_used_pages` is the most that were ever in use."""

    total_pages: int
    free_pages: int
    page_tokens: int
    sequences: int
    peak_used_pages: int

    @property
    def used_pages(self) -> int:
        return self.total_pages - self.free_pages


class _Sequence:
    """Pages of one sequence: `table[layer, i]` holds tokens i*page_tokens... of that layer."""

    __slots__ = ("layers", "num_layers", "pages", "table")

    def __init__(self, layers: LayerRange) -> None:
        self.layers = layers
        self.num_layers = len(layers)
        self.pages = 0
        self.table: PageTable = np.empty((len(layers), 0), np.int32)

    def reserve(self, pages: int) -> None:
        """A table for more pages than there is room for."""
        grown = np.empty((self.num_layers, max(4, 2 * pages)), np.int32)
        grown[:, : self.pages] = self.table[:, : self.pages]
        self.table = grown


class LayerPagePool:
    """Hands out page ids 0..total_pages-1. Not thread-safe: one owner."""

    def __init__(self, total_pages: int, page_tokens: int = DEFAULT_PAGE_TOKENS) -> None:
        if not 0 < total_pages < 1 << 31:
            raise ValueError(f"total_pages={total_pages} is not in 1..2^31-1")
        if not 0 < page_tokens <= 1 << 16:
            raise ValueError(f"page_tokens={page_tokens} is not in 1..65536")
        self.total_pages = total_pages
        self.page_tokens = page_tokens
        # A stack in an array: ids [0, _free) are free. Low ids are handed out first, so that a
        # lightly used node touches little memory.
        self._stack = np.arange(total_pages - 1, -1, -1, dtype=np.int32)
        self._free = total_pages
        self._least_free = total_pages
        self._sequences: dict[SeqKey, _Sequence] = {}

    def __contains__(self, seq: SeqKey) -> bool:
        return seq in self._sequences

    @property
    def free_pages(self) -> int:
        return self._free

    def pages_for(self, layers: int, tokens: int) -> int:
        """Pages that a sequence of `tokens` tokens takes when it runs `layers` layers here."""
        return layers * -(-tokens // self.page_tokens)

    def open(self, seq: SeqKey, layers: LayerRange) -> None:
        """Registers a sequence that will run `layers` here; takes no page yet."""
        if seq in self._sequences:
            raise ValueError(f"sequence {seq!r} is already open")
        self._sequences[seq] = _Sequence(layers)

    def ensure(self, seq: SeqKey, tokens: int) -> None:
        """Makes room for `tokens` tokens in every layer of `seq`; never takes room away.

        Raises KvExhausted, having taken nothing, when there are too few free pages.
        """
        sequence = self._sequences[seq]
        have, need = sequence.pages, -(-tokens // self.page_tokens)
        if need <= have:
            return
        pages, layers, free = need - have, sequence.num_layers, self._free
        count = pages * layers
        if count > free:
            raise KvExhausted(
                f"{tokens} tokens in {sequence.layers} need {count} more KV pages, "
                f"{self._free} of {self.total_pages} are free"
            )
        if need > sequence.table.shape[1]:
            sequence.reserve(need)
        taken = self._stack[free - count : free][::-1]
        if pages == 1:
            # What a decode takes: a page for each layer, thousands of times a second.
            sequence.table[:, have] = taken
        else:
            sequence.table[:, have:need] = taken.reshape(layers, pages)
        sequence.pages = need
        self._free = free = free - count
        if free < self._least_free:
            self._least_free = free

    def sequences(self) -> tuple[SeqKey, ...]:
        """The open sequences, oldest first."""
        return tuple(self._sequences)

    def layers(self, seq: SeqKey) -> LayerRange:
        """The layers that `seq` was opened with; they are the rows of its table."""
        return self._sequences[seq].layers

    def room_tokens(self, seq: SeqKey) -> int:
        """Tokens that `seq` has pages for."""
        return self._sequences[seq].pages * self.page_tokens

    def table(self, seq: SeqKey) -> PageTable:
        """int32 [layers, pages]: row i is layer `layers.first + i`. A view: do not write or keep
        it across `ensure` or `free`."""
        sequence = self._sequences[seq]
        return sequence.table[:, : sequence.pages]

    def free(self, seq: SeqKey) -> int:
        """Gives back all pages of `seq` and forgets it; returns how many pages that was."""
        sequence = self._sequences.pop(seq)
        ids = sequence.table[:, : sequence.pages]
        self._stack[self._free : self._free + ids.size] = ids[::-1, ::-1].ravel()
        self._free += ids.size
        return ids.size

    def resize(self, total_pages: int) -> tuple[PageTable, PageTable]:
        """Has `total_pages` from now on. Pages with ids beyond that move to free ones below:
        contents are to be copied from the first result's pages (int32 [n]) to the second's.

        ValueError, having changed nothing, when more pages are in use.
        """
        used = self.total_pages - self._free
        if not max(1, used) <= total_pages < 1 << 31:
            raise ValueError(f"{total_pages} pages are too few: {used} are in use")
        free = self._stack[: self._free]
        room = np.sort(free[free < total_pages])[::-1]
        sources: list[PageTable] = []
        targets: list[PageTable] = []
        for sequence in self._sequences.values():
            table = sequence.table[:, : sequence.pages]
            beyond = table >= total_pages
            count = int(beyond.sum())
            if count:
                sources.append(table[beyond])
                targets.append(room[len(room) - count :])
                table[beyond] = targets[-1]
                room = room[: len(room) - count]
        added = np.arange(total_pages - 1, self.total_pages - 1, -1, dtype=np.int32)
        self._free = len(added) + len(room)
        self._stack = np.zeros(total_pages, np.int32)
        # New ids at the bottom: low ones are handed out first.
        self._stack[: self._free] = np.concatenate([added, room])
        self._least_free = max(0, total_pages - (self.total_pages - self._least_free))
        self._least_free = min(self._least_free, self._free)
        self.total_pages = total_pages
        nothing = [np.empty(0, np.int32)]
        return np.concatenate(sources or nothing), np.concatenate(targets or nothing)

    def used(self) -> PageTable:
        """int32 [pages]: the ids that sequences hold."""
        held = [self.table(seq).ravel() for seq in self._sequences]
        return np.concatenate(held) if held else np.empty(0, np.int32)

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            total_pages=self.total_pages,
            free_pages=self._free,
            page_tokens=self.page_tokens,
            sequences=len(self._sequences),
            peak_used_pages=self.total_pages - self._least_free,
        )

    def check(self) -> None:
        """AssertionError if any page is lost, or in two places."""
        held = [self.table(seq).ravel() for seq in self._sequences]
        everything = np.sort(np.concatenate([self._stack[: self._free], *held]))
        expected = np.arange(self.total_pages, dtype=np.int32)
        if not np.array_equal(everything, expected):
            ids, counts = np.unique(everything, return_counts=True)
            twice = ids[counts > 1][:8].tolist()
            lost = np.setdiff1d(expected, ids)[:8].tolist()
            raise AssertionError(f"KV pages in two places: {twice}; lost: {lost}")
