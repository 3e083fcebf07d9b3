"""How fast each node is, against what it measured of itself: from the counters of heartbeats. Pure.

A heartbeat counts the seconds that steps took and the seconds that they should have taken. Their
ratio over the time between two beats is the node's slowdown in it, whatever batches it ran: 1 is
as measured, 3 is three times as slow. What the flow uses is smoothed, and follows in steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from helix_mq.messages.control import Heartbeat

LEAST, MOST = 0.25, 100.0
"""Bounds of a slowdown: a node is not believed to be much faster than it measured; at 100 it gets
next to no work, and dividing by more would lose it in the rounding of flows."""
MIN_STEPS = 4
LONG_S = 0.25
"""An interval counts with MIN_STEPS steps, or fewer that took so long together: one short step that
the system interrupted says nothing. Until then beats are added up."""
SLOWING_S = 1.0
"""Half-life of what was believed before, where the node is slower: after three beats of 1 s seven
eighths of a sudden slowdown are known, well inside the 5 s in which a share has to follow."""
RECOVERING_S = 3.0
"""The same where it is faster. Too much work for a slow node hurts every request on it, too little
for a fast one only its share: so it must prove itself for longer."""
LONGEST_S = 3.0
"""A single interval is given no more weight than one of this length."""
AT_ONCE = 1.2
"""A change by more than this factor, against what the flow uses, gives a new flow."""
SETTLED = 1.1
SETTLED_S = 5.0
"""And one by more than SETTLED does so long after the last: what was left over of a large change.
Measured times scatter by about as much as AT_ONCE, their averages over seconds by less."""
IDLE_S = 5.0
FORGETTING_S = 20.0
"""A node without work for IDLE_S drifts back to what it measured, with this half-life: one that had
become very slow gets no work to prove that it no longer is."""


@dataclass(slots=True)
class _Counted:
    """Cumulative counters of a beat, and when it came."""

    at_s: float
    steps: int
    step_s: float
    expected_s: float


class NodeSpeed:
    """One process of a node. `slowdown` is what the flow is to use, `measured` the average."""

    def __init__(self, now_s: float) -> None:
        self.slowdown = 1.0
        self.measured = 1.0
        self._from: _Counted | None = None
        self._used_s = now_s
        self._worked_s = now_s
        self._aged_s = now_s

    def beat(self, beat: Heartbeat, now_s: float) -> None:
        """Counters that fall, or are no numbers, are taken as a new beginning."""
        now = _Counted(now_s, beat.steps, beat.step_s, beat.expected_s)
        since = self._from
        if since is None or not (math.isfinite(beat.step_s) and math.isfinite(beat.expected_s)):
            self._from = now
            return
        steps, step_s = now.steps - since.steps, now.step_s - since.step_s
        expected_s = now.expected_s - since.expected_s
        if steps < 0 or step_s < 0 or expected_s < 0:
            self._from = now
            return
        if steps == 0:
            # Between two stretches of work there may be any pause: it is none of the work's time.
            since.at_s = now_s
            return
        if expected_s <= 0 or step_s <= 0:
            return
        if steps < MIN_STEPS and step_s < LONG_S:
            return
        self._from = now
        self._observe(step_s / expected_s, now_s - since.at_s, now_s)

    def _observe(self, ratio: float, over_s: float, now_s: float) -> None:
        ratio = min(max(ratio, LEAST), MOST)
        half_life_s = SLOWING_S if ratio > self.measured else RECOVERING_S
        kept = 0.5 ** (min(max(over_s, 0.0), LONGEST_S) / half_life_s)
        self.measured = kept * self.measured + (1 - kept) * ratio
        self._worked_s = self._aged_s = now_s

    def changed(self, now_s: float) -> bool:
        """Takes over what was measured, if that differs enough from what the flow uses."""
        self._age(now_s)
        factor = max(self.measured / self.slowdown, self.slowdown / self.measured)
        waited = now_s - self._used_s >= SETTLED_S
        if factor <= (SETTLED if waited else AT_ONCE):
            return False
        self.slowdown, self._used_s = self.measured, now_s
        return True

    def _age(self, now_s: float) -> None:
        if now_s - self._worked_s > IDLE_S and now_s > self._aged_s:
            # In factors: from 100 to 10 takes as long as from 10 to 1.
            self.measured **= 0.5 ** ((now_s - self._aged_s) / FORGETTING_S)
            self._aged_s = now_s
