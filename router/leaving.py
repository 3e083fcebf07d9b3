"""Nodes that are to leave: new requests go elsewhere, those on their way may finish. Pure.

A node whose layers are on others too is out of the flow at once. One that is the only holder of
some stays in it while a placement without it is looked for and made; where there is none it goes
out all the same, and requests wait for its layers as after a loss.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from helix_mq.ids import NodeId


@dataclass(slots=True)
class Leaver:
    """`asked`: by an operator, who can be told that it is not possible; else by its own process,
    which ends whatever the answer."""

    until_s: float
    asked: bool
    searched: bool = False
    """The last search began after it was to leave: its answer is one without it."""
    needed: bool = False
    """Stays in the flow: a placement without it is being looked for or made."""
    tried: bool = False
    """There is no placement without it, or looking for one is not allowed."""


class Leavers:
    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._leavers: dict[NodeId, Leaver] = {}

    def __bool__(self) -> bool:
        return bool(self._leavers)

    def __contains__(self, node: NodeId) -> bool:
        return node in self._leavers

    def get(self, node: NodeId) -> Leaver | None:
        return self._leavers.get(node)

    def add(self, node: NodeId, *, asked: bool, now_s: float) -> Leaver:
        """A process that says so itself goes even where an operator's wish was put off."""
        leaver = self._leavers.setdefault(node, Leaver(now_s + self._drain_s, asked))
        leaver.asked &= asked
        return leaver

    def forget(self, node: NodeId) -> None:
        self._leavers.pop(node, None)

    def names(self) -> list[NodeId]:
        return sorted(self._leavers)

    def out_of_flow(self) -> frozenset[NodeId]:
        return frozenset(n for n, leaver in self._leavers.items() if not leaver.needed)

    def needed(self) -> list[NodeId]:
        return sorted(n for n, leaver in self._leavers.items() if leaver.needed)

    def undecided(self) -> list[NodeId]:
        """Those that nobody has looked for a placement without."""
        return sorted(n for n, x in self._leavers.items() if x.needed and not x.tried)

    def searched(self) -> None:
        """A search begins that counts on none of those who are to leave by now."""
        for leaver in self._leavers.values():
            leaver.searched = True

    def answered(self) -> list[NodeId]:
        """Those whose staying or going the last search's answer decides."""
        return [n for n in self.undecided() if self._leavers[n].searched]

    def later(self) -> list[NodeId]:
        """Those who came after it began, so that its answer still counts on them."""
        return [n for n in self.undecided() if not self._leavers[n].searched]

    def done(self, crossed: Collection[NodeId], now_s: float) -> list[NodeId]:
        """Who may go: out of the flow, with no request left (`crossed` have some), or overdue.

        One that is needed goes when its process has said that it will wait no longer.
        """
        return sorted(
            n
            for n, x in self._leavers.items()
            if (not x.needed and (n not in crossed or x.until_s <= now_s))
            or (not x.asked and x.until_s <= now_s)
        )
