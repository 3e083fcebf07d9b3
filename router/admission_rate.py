"""How fast waiting requests are served: the max flow, corrected by what it has really passed. Pure.

The max flow is what the live nodes could pass if every batch formed as planned. While requests
wait, the cluster passes all it can, so the tokens it serves in that time over the tokens the flow
would have passed tell how far to believe it. That ratio outlives a node: when the flow is halved,
the estimate is halved with it, at once. Time without a queue says nothing and is not counted.

Served tokens are those of the estimate made at admission: a prompt when its first token comes, each
output token, and when a request ends before its expected length, the rest of it. So texts that
stop early make for a higher rate, and re-routed prompts, computed twice, count once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF_LIFE_S = 20.0
"""Of saturated time: long enough for a few requests, short enough to follow a change of load."""

CERTAIN_S = 2.0
CERTAIN_MARKS = 8.0
"""Saturated seconds, and prompts computed and requests ended in them, before anyone is refused for
the estimate's sake. Ends alone come late where much runs at once."""

_PRIOR_S = 1.0
"""The flow is believed as if it had been seen for so long."""


@dataclass(frozen=True, slots=True)
class RateStatistics:
    """`share`: of the max flow that is really passed under saturation."""

    share: float
    saturated_s: float
    certain: bool


class FlowMeter:
    def __init__(self, now_s: float) -> None:
        self._last_s = now_s
        self._saturated = False
        self._flow_tokens_per_s = 0.0
        self._served = self._could = self._seen_s = self._marks = 0.0

    def at(self, now_s: float, flow_tokens_per_s: float, *, saturated: bool) -> None:
        """From now on the cluster is as said; up to now it was as said before."""
        elapsed_s = max(0.0, now_s - self._last_s)
        self._last_s = now_s
        if self._saturated and elapsed_s > 0.0:
            keep = math.exp2(-elapsed_s / HALF_LIFE_S)
            self._could = self._could * keep + elapsed_s * self._flow_tokens_per_s
            self._seen_s = self._seen_s * keep + elapsed_s
            self._served *= keep
            self._marks *= keep
        self._saturated, self._flow_tokens_per_s = saturated, flow_tokens_per_s

    def served(self, tokens: float) -> None:
        """Tokens of requests that run, or will not have to run any more."""
        if self._saturated:
            self._served += tokens

    def mark(self) -> None:
        """A prompt has been computed, or a request has ended."""
        if self._saturated:
            self._marks += 1.0

    def tokens_per_s(self, flow_tokens_per_s: float) -> float:
        """What a flow so large will pass; 0 where nothing flows."""
        return flow_tokens_per_s * self._share(flow_tokens_per_s)

    def _share(self, flow_tokens_per_s: float) -> float:
        prior = _PRIOR_S * flow_tokens_per_s
        could = self._could + prior
        return (self._served + prior) / could if could > 0 else 0.0

    def statistics(self) -> RateStatistics:
        certain = self._seen_s >= CERTAIN_S and self._marks >= CERTAIN_MARKS
        return RateStatistics(self._share(self._flow_tokens_per_s), self._seen_s, certain)
