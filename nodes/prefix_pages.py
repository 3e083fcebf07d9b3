"""Which KV pages hold the beginnings of prompts that others may share: accounting only.

A page pool counts here who uses a page that is, or once was, shared, and finds pages by the name
of a prefix (`helix_mq.prefix_blocks`). Shared are units: as many tokens as fill whole blocks and
whole pages, so that nobody ever writes to a page that another reads. A page that is listed and not
used stays for whoever asks for it until its room is needed, least lately wanted first; parents are
wanted whenever their children are, so they go later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import lcm

import numpy as np
import numpy.typing as npt

from helix_mq.layers import LayerRange
from helix_mq.messages.data import BLOCK_TOKENS

PageIds = npt.NDArray[np.int32]


class _Unit:
    """Pages of one unit: `pages[layer - first]` are its pages in that layer, -1 where not here."""

    __slots__ = ("end", "first", "pages", "parent")

    def __init__(self, parent: bytes, layers: LayerRange, width: int) -> None:
        self.parent = parent
        self.first, self.end = layers.first, layers.end
        self.pages: PageIds = np.full((len(layers), width), -1, np.int32)

    def of(self, layers: LayerRange) -> PageIds | None:
        """int32 [layers, pages of a unit], a view; None unless all are here."""
        if layers.first < self.first or layers.end > self.end:
            return None
        pages = self.pages[layers.first - self.first : layers.end - self.first]
        return pages if pages.min() >= 0 else None

    def put(self, layers: LayerRange, pages: PageIds) -> PageIds:
        """These are its pages now; gives those that were, int32 [n]."""
        first, end = min(self.first, layers.first), max(self.end, layers.end)
        if end - first > len(self.pages):
            wider = np.full((end - first, self.pages.shape[1]), -1, np.int32)
            wider[self.first - first : self.end - first] = self.pages
            self.pages, self.first, self.end = wider, first, end
        place = self.pages[layers.first - self.first : layers.end - self.first]
        before = place[place >= 0]
        place[:] = pages
        return before


class PrefixPages:
    """Users and names of a pool's shared pages. Ids that come back are free: the pool's again."""

    def __init__(self, total_pages: int, page_tokens: int) -> None:
        self.unit_tokens = lcm(BLOCK_TOKENS, page_tokens)
        self.unit_pages = self.unit_tokens // page_tokens
        self._units: OrderedDict[bytes, _Unit] = OrderedDict()
        """Least lately wanted first."""
        self._users = np.zeros(total_pages, np.int32)
        """Of pages that are or were listed; of others 0, whoever has them."""
        self._listed = np.zeros(total_pages, np.bool_)
        self.idle_pages = 0
        """Listed, and used by nobody."""

    def __len__(self) -> int:
        return len(self._units)

    @property
    def listed_pages(self) -> int:
        return int(self._listed.sum())

    def chain(self, name: bytes, tokens: int, layers: LayerRange) -> list[bytes]:
        """Names of the units of a prefix of so many tokens, in order; empty unless all of them
        are here for all of `layers`."""
        names: list[bytes] = []
        if tokens % self.unit_tokens:
            return []
        for _ in range(tokens // self.unit_tokens):
            unit = self._units.get(name)
            if unit is None or unit.of(layers) is None:
                return []
            names.append(name)
            name = unit.parent
        return [] if name else names[::-1]

    def take(self, chain: Sequence[bytes], layers: LayerRange) -> PageIds:
        """int32 [layers, pages] of the units of `chain()`, with one user more."""
        parts = [self._units[name].of(layers) for name in chain]
        table = np.concatenate([part for part in parts if part is not None], axis=1)
        self.idle_pages -= int((self._users[table] == 0).sum())
        self._users[table] += 1
        self._want(chain)
        return table

    def publish(
        self, chain: Sequence[bytes], start: int, layers: LayerRange, table: PageIds
    ) -> PageIds:
        """Lists the pages of the units from number `start` of a sequence's chain on, which is their
        only user; `table` has them, [layers, pages]. What was listed by their names no longer is:
        pages just computed are as good, and if what was there was damaged it heals."""
        freed = []
        self._users[table] = 1
        for number, name in enumerate(chain[start:], start=start):
            at = (number - start) * self.unit_pages
            pages = table[:, at : at + self.unit_pages]
            unit = self._units.get(name)
            if unit is None:
                parent = chain[number - 1] if number else b""
                unit = self._units[name] = _Unit(parent, layers, self.unit_pages)
            # One by one: who makes names up may call two units of a sequence the same.
            freed.append(self._unlist(unit.put(layers, pages)))
            self._listed[pages] = True
        self._want(chain)
        return _joined(freed)

    def leave(self, table: PageIds) -> PageIds:
        """One user less of pages that have been taken or published; gives those nobody needs."""
        self._users[table] -= 1
        unused: PageIds = table[self._users[table] == 0]
        listed = self._listed[unused]
        self.idle_pages += int(listed.sum())
        gone: PageIds = unused[~listed]
        return gone

    def evict(self, count: int) -> PageIds:
        """Frees at least `count` of the idle pages; there must be so many."""
        freed: list[PageIds] = []
        while count > 0:
            name, unit = next(iter(self._units.items()))
            idle = (unit.pages >= 0) & (self._users[unit.pages] == 0)
            ids = unit.pages[idle]
            unit.pages[idle] = -1
            if unit.pages.max() < 0:
                del self._units[name]
            else:
                # Some layers of it are in use at this moment: nothing is wanted more lately.
                self._units.move_to_end(name)
            freed.append(self._unlist(ids))
            count -= len(ids)
        return _joined(freed)

    def distrust(self, chain: Sequence[bytes]) -> PageIds:
        """Nobody else is to get the units of these names."""
        freed = []
        for name in chain:
            unit = self._units.pop(name, None)
            if unit is not None:
                freed.append(self._unlist(unit.pages[unit.pages >= 0]))
        return _joined(freed)

    def clear(self) -> PageIds:
        """Forgets all names; those who use pages go on."""
        return self.distrust(tuple(self._units))

    def resize(self, total_pages: int, sources: PageIds, targets: PageIds) -> None:
        """Pages `sources` are `targets` now. Nothing may be listed beyond `total_pages`."""
        kept = min(total_pages, len(self._users))
        users, listed = np.zeros(total_pages, np.int32), np.zeros(total_pages, np.bool_)
        users[:kept], listed[:kept] = self._users[:kept], self._listed[:kept]
        users[targets] = self._users[sources]
        self._users, self._listed = users, listed

    def listed(self) -> PageIds:
        """int32 [n]: ids of all that are listed."""
        return np.flatnonzero(self._listed).astype(np.int32)

    def check(self, shared: Sequence[PageIds]) -> None:
        """AssertionError unless users are as many as have the pages, `shared` by sequence."""
        users = np.zeros_like(self._users)
        for table in shared:
            users[table] += 1
        if not np.array_equal(users, self._users):
            wrong = np.flatnonzero(users != self._users)[:8].tolist()
            raise AssertionError(f"pages with other users than are counted: {wrong}")
        named = [u.pages[u.pages >= 0] for u in self._units.values()]
        listed = np.sort(_joined(named))
        if not np.array_equal(listed, self.listed()):
            raise AssertionError(f"{len(listed)} pages have names, {self.listed_pages} are listed")
        idle = int((self._listed & (self._users == 0)).sum())
        if idle != self.idle_pages:
            raise AssertionError(f"{idle} pages are idle, {self.idle_pages} are counted")

    def _want(self, chain: Sequence[bytes]) -> None:
        for name in reversed(chain):
            if name in self._units:
                self._units.move_to_end(name)

    def _unlist(self, ids: PageIds) -> PageIds:
        """Takes pages off the list; gives those that nobody uses."""
        self._listed[ids] = False
        unused: PageIds = ids[self._users[ids] == 0]
        self.idle_pages -= len(unused)
        return unused


def _joined(parts: Sequence[PageIds]) -> PageIds:
    return np.concatenate(parts) if parts else np.empty(0, np.int32)
