"""When to look for another placement, and whether the one that is found is worth moving to. Pure.

The search itself runs elsewhere (router.planning); here are the occasions for it and the verdict.
Moving costs: weights are read while the cluster serves with what is left. A gain must pay for that
within the horizon. Without a cluster that serves, whatever serves is worth it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Occasion(StrEnum):
    """Why a placement is looked for; in words where people read them."""

    FIRST = "all expected nodes have joined"
    ASKED = "it was asked for"
    LEAVING = "a node is to leave that alone holds some layers"
    UNCOVERED = "nodes are gone that alone held some layers"
    CHANGED = "nodes came or went, or their speed changed"


@dataclass(frozen=True, slots=True)
class ReplanSettings:
    """`automatic`: without being asked for. `settle_s`: how long nodes must have been the same,
    `every_s` the least time between two searches for a gain, `return_s` how long a lost node may
    take to come back before its layers go to others.

    `horizon_s`: a move must pay within this time. `least_gain`: of the flow; measurements are not
    better than that. `slow_share`: of the present flow that is counted as lost while nodes load.
    """

    automatic: bool = True
    settle_s: float = 10.0
    every_s: float = 60.0
    return_s: float = 15.0
    horizon_s: float = 600.0
    least_gain: float = 0.05
    slow_share: float = 0.3
    search_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    go: bool
    text: str
    """In words, for the log and for who asked."""


class Replanner:
    def __init__(self, settings: ReplanSettings) -> None:
        self.settings = settings
        self.searching: Occasion | None = None
        self.number = 0
        """Of the search under way, or the last: answers to others are stale."""
        self.ended = 0
        self.last_text = ""
        self._changed_s: float | None = None
        self._searched_s = float("-inf")
        self._asked = False
        self._hopeless = False
        """Nothing was found for this set of nodes: another search would find nothing either."""

    def changed(self, now_s: float) -> None:
        """Nodes came or went, or their speeds are others."""
        self._changed_s = now_s
        self._hopeless = False

    def ask(self) -> None:
        self._asked = True

    def occasion(
        self, now_s: float, *, uncovered_s: float | None, someone_needed: bool
    ) -> Occasion | None:
        """What to search for now, if anything. `uncovered_s`: for how long nothing serves, None if
        something does; `someone_needed`: a node waits to leave."""
        if self.searching is not None:
            return None
        if self._asked:
            return Occasion.ASKED
        if someone_needed:
            return Occasion.LEAVING
        if not self.settings.automatic or self._changed_s is None or self._hopeless:
            return None
        if uncovered_s is not None:
            long = uncovered_s > 0 and uncovered_s >= self.settings.return_s
            return Occasion.UNCOVERED if long else None
        settled = now_s - self._changed_s >= self.settings.settle_s
        if settled and now_s - self._searched_s >= self.settings.every_s:
            return Occasion.CHANGED
        return None

    def search(self, occasion: Occasion, now_s: float) -> int:
        """A search begins; gives its number."""
        self.searching = occasion
        self.number += 1
        self._searched_s = now_s
        self._asked = False
        if occasion is Occasion.CHANGED:
            self._changed_s = None
        return self.number

    def over(self, *, found: bool) -> Occasion:
        """The search has ended."""
        occasion = self.searching
        assert occasion is not None
        self.searching = None
        self.ended += 1
        self._hopeless = not found
        return occasion

    def judge(
        self,
        occasion: Occasion,
        now_tokens_per_s: float,
        then_tokens_per_s: float,
        load_bytes: int,
        load_s: float,
    ) -> Verdict:
        """Whether to move. `load_bytes` are read by all nodes together, in `load_s` seconds."""
        now, then = now_tokens_per_s, then_tokens_per_s
        flows = f"max flow {now:.0f} -> {then:.0f} tokens/s"
        moving = f"{load_bytes / 2**20:.0f} MiB to load in about {load_s:.0f} s"
        if occasion in (Occasion.FIRST, Occasion.UNCOVERED, Occasion.LEAVING):
            return Verdict(True, f"{occasion}: {flows}, {moving}")
        gain = then - now
        if gain < self.settings.least_gain * now:
            share = self.settings.least_gain
            return Verdict(False, f"the placement stays: {flows} is no gain of {share:.0%} or more")
        left_s = max(0.0, self.settings.horizon_s - load_s)
        won, lost = gain * left_s, self.settings.slow_share * now * load_s
        sums = (
            f"{flows}, {moving}; within {self.settings.horizon_s:.0f} s that gives {won:.0f} "
            f"tokens and costs {lost:.0f}"
        )
        if won <= lost:
            return Verdict(False, f"the placement stays: {sums}")
        return Verdict(True, f"{occasion}: {sums}")
