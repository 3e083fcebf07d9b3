"""How fast each waiting line is really served: an owner's requests of one class. Pure.

What the others have waiting now says too little about what an owner will get: those that send less
than their share come again and again, each time before it. So what a line was given while it waited
is counted, and a new request's wait is at least the line before it at that pace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF_LIFE_S = 10.0
KNOWN_S = 0.5
"""How long a line must have been waiting before its pace is known."""

Line = tuple[str, int]
"""Owner and priority."""


@dataclass(slots=True)
class _Pace:
    last_s: float
    seen_s: float = 0.0
    taken_tokens: float = 0.0

    def advance(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self.last_s)
        if elapsed_s > 0.0:
            keep = math.exp2(-elapsed_s / HALF_LIFE_S)
            self.seen_s = self.seen_s * keep + elapsed_s
            self.taken_tokens *= keep
            self.last_s = now_s


class LinePaces:
    """Only of lines that wait: a line that has been served knows nothing of the next."""

    def __init__(self) -> None:
        self._paces: dict[Line, _Pace] = {}

    def waits(self, line: Line, now_s: float) -> None:
        """One more waits in it."""
        if line not in self._paces:
            self._paces[line] = _Pace(now_s)

    def took(self, line: Line, tokens: int, now_s: float) -> None:
        """One of it started."""
        pace = self._paces.get(line)
        if pace is not None:
            pace.advance(now_s)
            pace.taken_tokens += tokens

    def emptied(self, line: Line) -> None:
        self._paces.pop(line, None)

    def wait_s(self, line: Line, tokens_before: int, next_tokens: int, now_s: float) -> float:
        """Of a request behind so many tokens of its own line; 0 while the pace is not known.
        `next_tokens`: what the next of the line to start is taken to cost."""
        pace = self._paces.get(line)
        if pace is None:
            return 0.0
        pace.advance(now_s)
        if pace.seen_s < KNOWN_S:
            return 0.0
        # As if the next were starting just now: large requests start seldom.
        return tokens_before * pace.seen_s / (pace.taken_tokens + next_tokens)
