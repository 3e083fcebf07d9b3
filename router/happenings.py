"""The last things that happened to the cluster, in words, for people who look a moment later. Pure.

Filled from the notes that the core makes for the log; bounded, the oldest go first.
"""

from __future__ import annotations

from collections import deque

import msgspec

KEPT = 200


class Happening(msgspec.Struct, frozen=True):
    """`kind`, for colours and filters: joined, assigned, ready, suspect, heard, slow, leaving,
    drained, lost, failed, refused, link_closed, link_open, serving, not_serving, search, replan,
    placed, shifted, stays, or note. `node` is empty where it is about the cluster."""

    at_s: float
    """Unix time."""
    level: str
    """info, warning or error."""
    kind: str
    node: str
    text: str


class Happenings:
    def __init__(self, kept: int = KEPT) -> None:
        self._ring: deque[Happening] = deque(maxlen=kept)

    def add(self, at_s: float, level: str, kind: str, node: str, text: str) -> None:
        # Texts come from nodes, too: their length is theirs to choose, not what is kept of it.
        self._ring.append(Happening(at_s, level, kind, node, text[:500]))

    def last(self, count: int = KEPT) -> tuple[Happening, ...]:
        """The newest so many, oldest first."""
        return tuple(self._ring)[-count:] if count > 0 else ()
