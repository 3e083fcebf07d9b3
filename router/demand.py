"""How many tokens/s are asked for of late: prompts once they start, output as it comes. Pure.

What is served says nothing of what would be: where the nodes that are used are too slow, no more is
served. So prompts that have started and have no token yet count as well, and those that wait for
room: as many tokens/s as would have computed them within DRAIN_S.
"""

from __future__ import annotations

import math

from helix_mq.ids import RequestId

SPAN_S = 20.0
"""Time constant of the average: some answers long, so that a pause between two is none."""
DRAIN_S = 5.0


class Demand:
    def __init__(self, now_s: float) -> None:
        self._until_s = now_s
        self._average = 0.0
        self._tokens = 0
        """Since the average was looked at."""
        self._prompts: dict[RequestId, int] = {}
        self._prompt_tokens = 0

    def started(self, request: RequestId, tokens: int) -> None:
        """So many are to be computed for its first token."""
        self.left(request)
        self._prompts[request] = tokens
        self._prompt_tokens += tokens
        self._tokens += tokens

    def token(self, request: RequestId) -> None:
        """One more has come."""
        self._tokens += 1
        if request in self._prompts:
            self.left(request)

    def left(self, request: RequestId) -> None:
        """It is not on a route, or its prompt is computed."""
        self._prompt_tokens -= self._prompts.pop(request, 0)

    def tokens_per_s(self, now_s: float, waiting_tokens: int) -> float:
        """`waiting_tokens`: of requests that have not started. A burst counts at once."""
        elapsed_s = max(0.0, now_s - self._until_s)
        kept = math.exp(-elapsed_s / SPAN_S)
        # Of tokens that came evenly in between; for no time at all the limit of that.
        rate = (1 - kept) / elapsed_s if elapsed_s > 0 else 1 / SPAN_S
        self._average = kept * self._average + rate * self._tokens
        self._until_s, self._tokens = now_s, 0
        return self._average + (self._prompt_tokens + waiting_tokens) / DRAIN_S
