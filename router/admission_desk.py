"""Admission as the core uses it: the queue, the meter and the gate, kept in step. Pure.

Sessions come in by `check` and `arrive`, wait, `start`, are served token by token, may `return`
when they lose their route, and `leave`. What a request is expected to cost yet is counted down as
its tokens come, so that the meter hears of each token once, however often it is re-routed.
"""

from __future__ import annotations

from helix_mq.ids import NodeId
from helix_mq.layers import Route
from router.admission import WaitingQueue
from router.admission_gate import AdmissionGate, AdmissionSettings, Load, Wish
from router.admission_lines import Waiting
from router.admission_pace import LinePaces
from router.admission_rate import FlowMeter
from router.demand import Demand
from router.prefill_watch import PrefillWatch
from router.service import Generation
from router.sessions import Session

PATIENCE = 0.25
"""Of `max_wait_s`: what prompts may take to their first token before new ones wait for that."""


class AdmissionDesk:
    """`expected_output_tokens`: as in CoreSettings; what a request is taken to cost."""

    def __init__(
        self,
        settings: AdmissionSettings,
        max_waiting: int,
        expected_output_tokens: int,
        now_s: float,
    ) -> None:
        self.queue = WaitingQueue(settings.background_share)
        self.meter = FlowMeter(now_s)
        self._demand = Demand(now_s)
        self._paces = LinePaces()
        self._gate = AdmissionGate(settings, max_waiting, self.queue, self.meter, self._paces)
        self._now_s = now_s
        longest_s = settings.max_wait_s
        self.prefills = PrefillWatch(None if longest_s is None else PATIENCE * longest_s)
        self._expected_output_tokens = expected_output_tokens
        self._flow_tokens_per_s = 0.0
        self._running: dict[int, int] = {}
        """Tokens that each request on a route is expected to need yet."""
        self._running_tokens = 0

    def at(self, now_s: float, flow_tokens_per_s: float) -> None:
        """Called after every event. The flow is 0 while the live nodes do not cover the model."""
        self._flow_tokens_per_s, self._now_s = flow_tokens_per_s, now_s
        saturated = len(self.queue) > 0 and flow_tokens_per_s > 0
        self.meter.at(now_s, flow_tokens_per_s, saturated=saturated)

    def check(
        self, owner: str, priority: int, deadline_s: float, generation: Generation | None = None
    ) -> None:
        """Raises QueueFull or ClusterFull when it may not wait; without a generation, when none of
        this owner and class may. `deadline_s`: from now."""
        cost = self._cost(len(generation.prompt_ids), generation) if generation is not None else 1
        running = len(self._running)
        load = Load(self._flow_tokens_per_s, running, self._running_tokens, self._now_s)
        self._gate.check(Wish(owner, priority, cost, deadline_s), load)

    def arrive(self, session: Session) -> None:
        """It waits: new, from a broken route, or from before the router's restart."""
        generation = session.generation
        done = len(session.output)
        self.queue.push(
            Waiting(
                session.request,
                generation.owner,
                generation.priority,
                session.arrived_s,
                max(1, self._cost(session.prompt_tokens, generation) - done),
                begun=session.started_s is not None,
            )
        )
        if session.started_s is None:
            self._paces.waits(_line(session), self._now_s)

    def remove(self, session: Session) -> None:
        """It does not wait any more, and has not started."""
        self.queue.remove(session.request)
        self._settle(session)

    def look(self, now_s: float) -> float:
        """Before a round of `node_has_room`; gives the tokens/s that are asked for."""
        self.prefills.look(now_s)
        return self._demand.tokens_per_s(now_s, self.queue.tokens)

    def start(self, session: Session, route: Route, now_s: float) -> None:
        """It is given a route."""
        self.queue.take(session.request)
        cost = self._cost(session.prompt_tokens, session.generation)
        if session.started_s is None:
            self._paces.took(_line(session), cost, now_s)
        self._settle(session)
        nodes = frozenset(route.nodes)
        computed = session.length_tokens - session.prefix.skipped_tokens
        self.prefills.start(session.request, nodes, computed, now_s)
        self._demand.started(session.request, computed)
        done = session.prompt_tokens + len(session.output) if session.output else 0
        self._running[session.request] = left = max(0, cost - done)
        self._running_tokens += left

    def node_has_room(self, node: NodeId, session: Session) -> bool:
        """Whether the node should get one more prompt now; what has begun goes on wherever it can,
        for a client is reading."""
        if session.started_s is not None:
            return True
        return self.prefills.has_room(node, session.length_tokens, self._flow_tokens_per_s)

    def token(self, session: Session, now_s: float) -> bool:
        """One more has come. True if its prompt is computed by that, which makes room for more."""
        first = len(session.output) == 1
        self._demand.token(session.request)
        self._served(session, 1 + (session.prompt_tokens if first else 0))
        if first:
            self.meter.mark()
        return self.prefills.computed(session.request, now_s)

    def off_route(self, session: Session) -> None:
        """It has lost its route, or has ended."""
        self._running_tokens -= self._running.pop(session.request, 0)
        self.prefills.leave(session.request)
        self._demand.left(session.request)

    def ended(self, session: Session) -> None:
        """Before `off_route`: what it was expected to need and did not is no load any more."""
        if session.request in self._running:
            self._served(session, self._running[session.request])
            self.meter.mark()

    def _settle(self, session: Session) -> None:
        line = _line(session)
        if not self.queue.tokens_of(*line):
            self._paces.emptied(line)

    def _served(self, session: Session, tokens: int) -> None:
        # Beyond its expected length there is nothing left to count down, but it is served.
        self.meter.served(tokens)
        left = self._running.get(session.request, 0)
        self._running[session.request] = max(0, left - tokens)
        self._running_tokens -= min(left, tokens)

    def _cost(self, prompt_tokens: int, generation: Generation) -> int:
        return prompt_tokens + min(generation.sampling.max_tokens, self._expected_output_tokens)


def _line(session: Session) -> tuple[str, int]:
    return session.generation.owner, session.generation.priority
