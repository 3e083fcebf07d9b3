"""Keeps the decodes of routes whose hops share one device in one batch. Pure.

On devices of their own the stages of a pipeline work at once, and several batches on their way keep
them all busy. On one device they take turns, and a second batch only costs: it reads all weights
again. There the first hop lets decodes wait until those before them are back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from helix_mq.clock import Clock
from helix_mq.ids import ROUTER
from nodes.batching import SeqKey, Work
from nodes.payload import Payload

FIRST_ROUND_S: Final = 0.05
"""A round's length until one was seen."""
LONGEST_ROUNDS: Final = 2.0
"""Waits no longer than so many rounds: who is away for longer is lost, or behind a prompt."""
_NEWEST: Final = 0.25
"""Share of the newest round in their mean."""


class Convoy:
    """The sequences that begin here and are to travel together; who of them is away, since when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.members: set[SeqKey] = set()
        self.away: dict[SeqKey, float] = {}
        """Departures, in order. Both for others to look at: mostly they are empty."""
        self.round_s = FIRST_ROUND_S
        """From a departure to the return, in the mean."""

    def __len__(self) -> int:
        return len(self.members)

    def took(self, work: Work[Payload]) -> None:
        """A row has come in: a first one, or one that is back."""
        seq = work.seq
        if work.payload.together and work.next_hop != ROUTER:
            self.members.add(seq)
        left_s = self.away.pop(seq, None)
        if left_s is not None:
            self.round_s += _NEWEST * (self._clock.now_s() - left_s - self.round_s)

    def left(self, batch: Iterable[Work[Payload]]) -> None:
        """These rows run now, and go on. Prompts are not waited for: they may take long."""
        members = self.members
        if not members:
            return
        now_s = self._clock.now_s()
        for work in batch:
            if work.is_decode and work.seq in members:
                # Anew at the end: departures are in order.
                self.away.pop(work.seq, None)
                self.away[work.seq] = now_s

    def forget(self, seq: SeqKey) -> None:
        self.members.discard(seq)
        self.away.pop(seq, None)

    def wait_s(self) -> float:
        """How long members here may wait for those that are away; 0 if none is, or all too long."""
        if not self.away:
            return 0.0
        last_s = next(reversed(self.away.values()))
        return max(0.0, last_s + LONGEST_ROUNDS * self.round_s - self._clock.now_s())
