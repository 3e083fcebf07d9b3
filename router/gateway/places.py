"""How many connections there may be, and which one gives way when there are too many. Pure.

Those without a request at work (no head yet, idle after an answer) give way to new ones, the one
that has been so for longest first: connections that only sit there lock nobody out. When every one
has a request at work, the new one is turned away.
"""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    def give_way(self) -> None:
        """Ends the connection at once; its `leave` may come now or later."""
        ...


class Places:
    def __init__(self, most: int) -> None:
        self._most = most
        self._idle: dict[Holder, None] = {}
        self._busy: set[Holder] = set()
        self.gave_way = 0
        self.turned_away = 0

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    def enter(self, holder: Holder) -> bool:
        """A connection is made, without a request as yet. False: there is no place for it."""
        if len(self) >= self._most:
            if not self._idle:
                self.turned_away += 1
                return False
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self.gave_way += 1
            oldest.give_way()
        self._idle[holder] = None
        return True

    def busy(self, holder: Holder) -> None:
        """It has sent the head of a request."""
        if holder in self._idle:
            del self._idle[holder]
            self._busy.add(holder)

    def idle(self, holder: Holder) -> None:
        """Its request was answered."""
        if holder in self._busy:
            self._busy.discard(holder)
            self._idle[holder] = None

    def leave(self, holder: Holder) -> None:
        self._idle.pop(holder, None)
        self._busy.discard(holder)
