"""Who may wait, and what those are told who may not. Pure.

    own share of the queue full     QueueFull     429   the caller's doing: send less
    queue full, whoever filled it   ClusterFull   503
    would wait too long             ClusterFull   503   longer than `max_wait_s` (interactive only)
    would wait past its deadline    ClusterFull   503   only with `refuse_hopeless`

Every refusal says how many wait, how fast they are served, and when to come back: the time in
which half of what is ahead will have been served, so that those refused do not come back all at
once to a queue as full as before. The two refusals for the wait rest on an estimate. Until it is
certain (see `admission_rate`) the whole max flow is taken, which no cluster passes for long, or
what has been seen where that is more: whom that refuses would have waited too long anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from helix_mq.errors import ClusterFull, QueueFull
from router.admission import INTERACTIVE, WaitingQueue
from router.admission_pace import LinePaces
from router.admission_rate import FlowMeter

UNKNOWN_RETRY_S = 5.0
LEAST_RETRY_S, MOST_RETRY_S = 1.0, 60.0
_DEADLINE_SHARE = 0.7
"""Of its time, what a request may wait: it is to be served yet, and estimates are not exact."""
_MAX_OWNER_CHARS = 64


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """`owner_share`: of the queue, what the requests of one owner may take; those without an owner
    (no keys) may take all of it. `background_share`: see `WaitingQueue`. `max_wait_s`: an
    interactive request that would wait longer is refused at once; None lets it wait.
    """

    owner_share: float = 0.5
    background_share: float = 0.1
    max_wait_s: float | None = None
    refuse_hopeless: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """`flow_tokens_per_s`: the max flow over the live nodes; 0 while they do not cover the model.
    `running_tokens`: what those on a route are expected to need yet. `now_s`: of the desk's clock.
    """

    flow_tokens_per_s: float
    running: int
    running_tokens: int
    now_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Wish:
    """A new request, as far as admission looks at it. `deadline_s`: seconds from now."""

    owner: str
    priority: int
    cost_tokens: int
    deadline_s: float


class AdmissionGate:
    def __init__(
        self,
        settings: AdmissionSettings,
        max_waiting: int,
        queue: WaitingQueue,
        meter: FlowMeter,
        paces: LinePaces,
    ) -> None:
        self._settings = settings
        self._max_waiting = max_waiting
        self._per_owner = max(1, math.ceil(settings.owner_share * max_waiting))
        self._queue = queue
        self._meter = meter
        self._paces = paces

    def check(self, wish: Wish, load: Load) -> None:
        """Raises QueueFull or ClusterFull when a new request may not wait."""
        waiting = len(self._queue)
        if not waiting:
            return
        own = self._queue.owners.get(wish.owner, 0)
        if wish.owner and own >= self._per_owner:
            self._refuse_own(wish, load, own)
        if waiting >= self._max_waiting:
            retry_s = self._retry_after_s(self._queue.tokens, load)
            raise ClusterFull(
                f"{self._state(load)}, and no more may; {_again(retry_s)}", retry_after_s=retry_s
            )
        self._check_wait(wish, load)

    def wait_s(self, wish: Wish, load: Load) -> float | None:
        """Seconds until a new request would start, rather too few than too many; None while nothing
        flows."""
        rate = self._meter.tokens_per_s(load.flow_tokens_per_s)
        if rate <= 0:
            return None
        if not self._meter.statistics().certain:
            rate = max(rate, load.flow_tokens_per_s)
        before = self._queue.tokens_before(wish.owner, wish.priority, wish.cost_tokens)
        line = (wish.owner, wish.priority)
        own = self._queue.tokens_of(*line)
        # Whoever asks, the next to start is one of the line's.
        mean = self._queue.mean_tokens_of(*line)
        return max(before / rate, self._paces.wait_s(line, own, mean, load.now_s))

    def _check_wait(self, wish: Wish, load: Load) -> None:
        longest_s = self._settings.max_wait_s
        bounded = longest_s is not None and wish.priority == INTERACTIVE
        if not (bounded or self._settings.refuse_hopeless):
            return
        wait_s = self.wait_s(wish, load)
        if wait_s is None:
            return
        if bounded and longest_s is not None and wait_s > longest_s:
            limit = f"max_wait_s lets a request wait for {longest_s:g} s"
            retry_s = _clamped(max(wait_s - longest_s, 0.5 * wait_s))
        elif self._settings.refuse_hopeless and wait_s > _DEADLINE_SHARE * wish.deadline_s:
            limit = f"its deadline is in {wish.deadline_s:g} s"
            retry_s = _clamped(max(wait_s - wish.deadline_s, 0.5 * wait_s))
        else:
            return
        raise ClusterFull(
            f"{self._state(load)}; a new request would wait for about {wait_s:.0f} s, and {limit}; "
            f"{_again(retry_s)}",
            retry_after_s=retry_s,
        )

    def _refuse_own(self, wish: Wish, load: Load, own: int) -> None:
        # Its line is done when the others have had as much.
        before = self._queue.tokens_before(wish.owner, wish.priority, wish.cost_tokens)
        retry_s = self._retry_after_s(before, load)
        owner = wish.owner[:_MAX_OWNER_CHARS]
        raise QueueFull(
            f"{own} requests of key {owner} are waiting already, and one key may have "
            f"{self._per_owner} of {self._max_waiting} waiting; {_again(retry_s)}",
            retry_after_s=retry_s,
        )

    def _retry_after_s(self, tokens: int, load: Load) -> float:
        rate = self._meter.tokens_per_s(load.flow_tokens_per_s)
        return _clamped(0.5 * tokens / rate) if rate > 0 else UNKNOWN_RETRY_S

    def _state(self, load: Load) -> str:
        rate = self._meter.tokens_per_s(load.flow_tokens_per_s)
        waiting = len(self._queue)
        return (
            f"{waiting} request{' is' if waiting == 1 else 's are'} waiting already with "
            f"{self._queue.tokens} tokens behind {load.running} running with "
            f"{load.running_tokens}, served at about {rate:.0f} tokens/s of a max flow of "
            f"{load.flow_tokens_per_s:.0f}"
        )


def _clamped(retry_s: float) -> float:
    return min(MOST_RETRY_S, max(LEAST_RETRY_S, retry_s))


def _again(retry_s: float) -> str:
    return f"try again in {math.ceil(retry_s)} s"
