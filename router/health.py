"""What the router tells the service manager of itself; see helix_mq.notify."""

from __future__ import annotations

from helix_mq.clock import Clock
from router.app import RouterApp
from router.cluster_core import ClusterCore

TICKS_LATE_S = 15.0
"""Ticks come four times a second; without them nobody is missed and nothing expires."""


class RouterHealth:
    def __init__(self, app: RouterApp, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    def status(self) -> str:
        return status_text(self._app.core.cluster, len(self._app.core.sessions()))

    def stuck(self) -> str:
        return stuck_text(self._clock.now_s() - self._app.ticked_s, self._app.died)


def status_text(cluster: ClusterCore, requests: int) -> str:
    nodes, reason = len(cluster.membership), cluster.why_not_serving()
    counted = f"{_count(nodes, 'node')}, {_count(requests, 'request')}"
    return f"not serving: {reason}; {counted}" if reason else f"serving, {counted}"


def stuck_text(since_tick_s: float, died: str) -> str:
    """`died`: a task that was not to end, whatever it was for."""
    if died:
        return f"the task {died} has died"
    if since_tick_s > TICKS_LATE_S:
        return f"no tick for more than {TICKS_LATE_S:.0f} s"
    return ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
