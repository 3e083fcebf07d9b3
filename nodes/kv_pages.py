"""Which KV page belongs to whom: accounting only, no tensors.

The unit is a layer-page: room for `page_tokens` tokens of one layer. All layers of a node draw from
one free list, so a sequence that runs k of the node's layers takes exactly k pages per
`page_tokens` tokens, whatever part of the slice it uses. `ensure` gives all that was asked or
nothing. Pages with the beginnings of prompts may be shared, and stay after their sequences for as
long as nothing else needs them (`nodes.prefix_pages`): those count as free.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from helix_mq.errors import KvExhausted
from helix_mq.layers import LayerRange
from helix_mq.prefix_blocks import BlockNames
from nodes.prefix_pages import PrefixPages

SeqKey = Hashable
"""Names a sequence on this node; any hashable value."""

PageTable = npt.NDArray[np.int32]

DEFAULT_PAGE_TOKENS = 16

KEPT_FROM_DRAFTS = 0.1
"""Of all pages: so many stay free for whoever needs them, as the router's own mark has it."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """One moment of a pool. `peak_used_pages` is the most that were ever in use; `cached_pages`,
    of those free, hold beginnings of prompts."""

    total_pages: int
    free_pages: int
    page_tokens: int
    sequences: int
    peak_used_pages: int
    cached_pages: int = 0

    @property
    def used_pages(self) -> int:
        return self.total_pages - self.free_pages


class _Sequence:
    """Pages of one sequence: `table[layer, i]` holds tokens i*page_tokens... of that layer.

    The first `shared` of its pages, in each layer, others may read. `names`: of its units.
    """

    __slots__ = ("at", "layers", "names", "num_layers", "pages", "shared", "stride", "table")

    def __init__(self, layers: LayerRange) -> None:
        self.layers = layers
        self.num_layers = len(layers)
        self.pages = 0
        self.shared = 0
        self.names: list[bytes] = []
        self.hold(np.empty((len(layers), 0), np.int32))

    def reserve(self, pages: int) -> None:
        """A table for more pages than there is room for."""
        grown = np.empty((self.num_layers, max(4, 2 * pages)), np.int32)
        grown[:, : self.pages] = self.table[:, : self.pages]
        self.hold(grown)

    def hold(self, table: PageTable) -> None:
        """`at`: where it is in memory; `stride`: bytes from one layer's pages to the next's."""
        self.table = table = np.ascontiguousarray(table)
        self.at: int = table.__array_interface__["data"][0]
        self.stride = table.strides[0]


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
        self._prefixes = PrefixPages(total_pages, page_tokens)

    def __contains__(self, seq: SeqKey) -> bool:
        return seq in self._sequences

    @property
    def free_pages(self) -> int:
        """Those that `ensure` can give, cached beginnings of prompts among them."""
        return self._free + self._prefixes.idle_pages

    def pages_for(self, layers: int, tokens: int) -> int:
        """Pages that a sequence of `tokens` tokens takes when it runs `layers` layers here."""
        return layers * -(-tokens // self.page_tokens)

    def open(self, seq: SeqKey, layers: LayerRange) -> None:
        """Registers a sequence that will run `layers` here; takes no page yet."""
        if seq in self._sequences:
            raise ValueError(f"sequence {seq!r} is already open")
        self._sequences[seq] = _Sequence(layers)

    def resume(self, seq: SeqKey, layers: LayerRange, tokens: int, name: bytes) -> bool:
        """Opens `seq` with the pages of the first `tokens` of its prompt, a prefix of this name.
        False, having done nothing, when they are not all here."""
        chain = self._prefixes.chain(name, tokens, layers)
        if not chain:
            return False
        self.open(seq, layers)
        sequence = self._sequences[seq]
        sequence.hold(self._prefixes.take(chain, layers))
        sequence.names = chain
        sequence.pages = sequence.shared = sequence.table.shape[1]
        self._least_free = min(self._least_free, self.free_pages)
        return True

    def shared_tokens(self, seq: SeqKey) -> int:
        """Tokens from the start of `seq` that others may read: they must not be written again."""
        return self._sequences[seq].shared * self.page_tokens

    def name(self, seq: SeqKey, blocks: BlockNames) -> None:
        """Says what the blocks of the next tokens of `seq` are called."""
        names, unit = self._sequences[seq].names, self._prefixes.unit_tokens
        for tokens, name in blocks.ends():
            if tokens == (len(names) + 1) * unit:
                names.append(name)

    def publish(self, seq: SeqKey, tokens: int) -> None:
        """The first `tokens` of `seq` are computed: whoever has the same prompt may share them, as
        far as they have names."""
        sequence, prefixes = self._sequences[seq], self._prefixes
        units = min(tokens // prefixes.unit_tokens, len(sequence.names))
        pages = units * prefixes.unit_pages
        if pages <= sequence.shared:
            return
        start = sequence.shared // prefixes.unit_pages
        table = sequence.table[:, sequence.shared : pages]
        self._push(prefixes.publish(sequence.names[:units], start, sequence.layers, table))
        sequence.shared = pages

    def distrust(self, seq: SeqKey) -> None:
        """Nobody else is to share what `seq` has, e.g. since it holds no numbers."""
        sequence = self._sequences[seq]
        self._push(self._prefixes.distrust(sequence.names))
        del sequence.names[sequence.shared // self._prefixes.unit_pages :]

    def ensure(self, seq: SeqKey, tokens: int) -> None:
        """Makes room for `tokens` tokens in every layer of `seq`; never takes room away.

        Raises KvExhausted, having taken nothing, when there are too few free pages.
        """
        sequence = self._sequences[seq]
        have, need = sequence.pages, -(-tokens // self.page_tokens)
        if need <= have:
            return
        pages, layers = need - have, sequence.num_layers
        count = pages * layers
        idle = self._prefixes.idle_pages
        if count > self._free:
            if count > self._free + idle:
                raise KvExhausted(
                    f"{tokens} tokens in {sequence.layers} need {count} more KV pages, "
                    f"{self.free_pages} of {self.total_pages} are free"
                )
            self._push(self._prefixes.evict(count - self._free))
            idle = self._prefixes.idle_pages
        free = self._free
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
        if free + idle < self._least_free:
            self._least_free = free + idle

    def is_ready(self, seq: SeqKey, position: int, count: int) -> bool:
        """Whether `seq` is open, may be written from `position` on, and has room for `count`
        tokens there."""
        sequence, page = self._sequences.get(seq), self.page_tokens
        return (
            sequence is not None
            and position >= sequence.shared * page
            and position + count <= sequence.pages * page
        )

    def draft_room(self, seq: SeqKey, tokens: int, wanted: int) -> int:
        """How many of `wanted` drafts behind the first `tokens` of `seq` cost nobody anything.

        Those on pages that these tokens take anyway, and on unused ones while many are left. Kept
        beginnings of prompts do not give way for drafts, as they do for tokens.
        """
        sequence, page = self._sequences.get(seq), self.page_tokens
        if sequence is None:
            return wanted
        pages = max(sequence.pages, -(-tokens // page))
        room = pages * page - tokens
        if wanted > room:
            kept = math.ceil(KEPT_FROM_DRAFTS * self.total_pages)
            unused = self._free - (pages - sequence.pages) * sequence.num_layers - kept
            room += max(0, unused // sequence.num_layers) * page
        return min(wanted, room)

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
        it across `ensure` or `free`. Others may have the first of them, too."""
        sequence = self._sequences[seq]
        return sequence.table[:, : sequence.pages]

    def place(self, seq: SeqKey, layers: LayerRange, position: int) -> tuple[int, int] | None:
        """As table(), for compiled code: the address of the page ids (int32) of the first of
        `layers`, and how many ids further those of the next layer begin. None unless `seq` is open
        here with these layers and has a page for `position`."""
        sequence = self._sequences.get(seq)
        if sequence is None or position >= sequence.pages * self.page_tokens:
            return None
        own = sequence.layers
        if layers.first < own.first or layers.end > own.end:
            return None
        stride = sequence.stride
        return sequence.at + (layers.first - own.first) * stride, stride // 4

    def free(self, seq: SeqKey) -> int:
        """Forgets `seq` and gives back its pages, but for what others share; returns how many it
        had."""
        sequence = self._sequences.pop(seq)
        ids = sequence.table[:, : sequence.pages]
        self._push(ids[::-1, sequence.shared :][:, ::-1].ravel())
        if sequence.shared:
            self._push(self._prefixes.leave(ids[:, : sequence.shared]))
        return ids.size

    def _push(self, ids: PageTable) -> None:
        """These are free from now on."""
        self._stack[self._free : self._free + ids.size] = ids
        self._free += ids.size

    def resize(self, total_pages: int) -> tuple[PageTable, PageTable]:
        """Has `total_pages` from now on. Pages with ids beyond that move to free ones below:
        contents are to be copied from the first result's pages (int32 [n]) to the second's. With
        fewer pages, nothing is shared with those that come later.

        ValueError, having changed nothing, when more pages are in use.
        """
        used = self.total_pages - self.free_pages
        if not max(1, used) <= total_pages < 1 << 31:
            raise ValueError(f"{total_pages} pages are too few: {used} are in use")
        if total_pages < self.total_pages:
            self._push(self._prefixes.clear())
        free = self._stack[: self._free]
        room = np.sort(free[free < total_pages])[::-1]
        held = self.used()
        sources = held[held >= total_pages]
        targets = room[len(room) - len(sources) :]
        room = room[: len(room) - len(sources)]
        if len(sources):
            place = np.arange(self.total_pages, dtype=np.int32)
            place[sources] = targets
            for sequence in self._sequences.values():
                table = sequence.table[:, : sequence.pages]
                table[:] = place[table]
        self._prefixes.resize(total_pages, sources, targets)
        added = np.arange(total_pages - 1, self.total_pages - 1, -1, dtype=np.int32)
        self._free = len(added) + len(room)
        self._stack = np.zeros(total_pages, np.int32)
        # New ids at the bottom: low ones are handed out first.
        self._stack[: self._free] = np.concatenate([added, room])
        self._least_free = max(0, total_pages - (self.total_pages - self._least_free))
        self._least_free = min(self._least_free, self.free_pages)
        self.total_pages = total_pages
        return sources, targets

    def used(self) -> PageTable:
        """int32 [pages], rising: the ids that sequences hold or prefixes are cached in."""
        held = [self.table(seq).ravel() for seq in self._sequences]
        return np.unique(np.concatenate([self._prefixes.listed(), *held]))

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            total_pages=self.total_pages,
            free_pages=self.free_pages,
            page_tokens=self.page_tokens,
            sequences=len(self._sequences),
            peak_used_pages=self.total_pages - self._least_free,
            cached_pages=self._prefixes.idle_pages,
        )

    def check(self) -> None:
        """AssertionError if any page is lost, in two places, or shared by more than are counted."""
        sequences = self._sequences.values()
        alone = [s.table[:, s.shared : s.pages].ravel() for s in sequences]
        shared = [s.table[:, : s.shared] for s in sequences]
        common = [np.unique(np.concatenate([self._prefixes.listed(), *map(np.ravel, shared)]))]
        everything = np.sort(np.concatenate([self._stack[: self._free], *common, *alone]))
        expected = np.arange(self.total_pages, dtype=np.int32)
        if not np.array_equal(everything, expected):
            ids, counts = np.unique(everything, return_counts=True)
            twice = ids[counts > 1][:8].tolist()
            lost = np.setdiff1d(expected, ids)[:8].tolist()
            raise AssertionError(f"KV pages in two places: {twice}; lost: {lost}")
        self._prefixes.check(shared)
