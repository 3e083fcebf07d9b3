"""What is observed of the router and its cluster for people: rates, happenings, counts.

Told of every event and note by the app, after the core has dealt with it; decides nothing, and
nothing that serves depends on it.
"""

from __future__ import annotations

import logging

from helix_mq.clock import Clock
from helix_mq.ids import ROUTER
from router import events as ev
from router.happenings import Happenings
from router.membership import Membership
from router.metrics import RouterMetrics
from router.node_rates import NodeRates


class Seeing:
    def __init__(self, metrics: RouterMetrics, membership: Membership, clock: Clock) -> None:
        self.metrics = metrics
        self.rates = NodeRates()
        self.happenings = Happenings()
        self.started_s = clock.now_s()
        self._membership = membership
        self.clock = clock

    def saw(self, event: ev.Event) -> None:
        match event:
            case ev.NodeBeat():
                # Strangers beat, too: what is kept of them must not grow.
                if self._membership.is_current(event.beat.node, event.beat.incarnation):
                    self.rates.beat(event.beat, self.clock.now_s())
            case ev.OwnLinks():
                self.rates.links(ROUTER, event.reports, self.clock.now_s())
                self.rates.keep({ROUTER, *(m.name for m in self._membership)})
            case _:
                pass

    def noted(self, note: ev.Note) -> None:
        """What is about one request is no happening of the cluster."""
        if not note.request:
            self.metrics.happened(note.kind or "note")
            level = logging.getLevelName(note.level).lower()
            self.happenings.add(
                self.clock.wall_s(), level, note.kind or "note", note.node, note.text
            )
