"""Admission as the core uses it: the queue, the meter and the gate, kept in step. Pure.

Sessions come in by `check` and `arrive`, wait, `start`, are served token by token, may `return`
when they lose their route, and `leave`. What a request is expected to cost yet is counted down as
its tokens come, so that the meter hears of each token once, however often it is re-routed.
"""

from __future__ import annotations

from router.admission import WaitingQueue
from router.admission_gate import AdmissionGate, AdmissionSettings, Load, Wish
from router.admission_lines import Waiting
from router.admission_rate import FlowMeter
from router.service import Generation
from router.sessions import Session


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
        self._gate = AdmissionGate(settings, max_waiting, self.queue, self.meter)
        self._expected_output_tokens = expected_output_tokens
        self._flow_tokens_per_s = 0.0
        self._running: dict[int, int] = {}
        """Tokens that each request on a route is expected to need yet."""
        self._running_tokens = 0

    def at(self, now_s: float, flow_tokens_per_s: float) -> None:
        """Called after every event. The flow is 0 while the live nodes do not cover the model."""
        self._flow_tokens_per_s = flow_tokens_per_s
        saturated = len(self.queue) > 0 and flow_tokens_per_s > 0
        self.meter.at(now_s, flow_tokens_per_s, saturated=saturated)

    def check(self, generation: Generation, deadline_s: float) -> None:
        """Raises QueueFull or ClusterFull when it may not wait. `deadline_s`: from now."""
        cost = self._cost(len(generation.prompt_ids), generation)
        load = Load(self._flow_tokens_per_s, len(self._running), self._running_tokens)
        self._gate.check(Wish(generation.owner, generation.priority, cost, deadline_s), load)

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

    def start(self, session: Session) -> None:
        """It has a route."""
        self.queue.take(session.request)
        cost = self._cost(session.prompt_tokens, session.generation)
        done = session.prompt_tokens + len(session.output) if session.output else 0
        self._running[session.request] = left = max(0, cost - done)
        self._running_tokens += left

    def token(self, session: Session) -> None:
        """One more has come."""
        first = len(session.output) == 1
        self._served(session, 1 + (session.prompt_tokens if first else 0))

    def off_route(self, session: Session) -> None:
        """It has lost its route, or has ended."""
        self._running_tokens -= self._running.pop(session.request, 0)

    def ended(self, session: Session) -> None:
        """Before `off_route`: what it was expected to need and did not is no load any more."""
        if session.request in self._running:
            self._served(session, self._running[session.request])
            self.meter.ended()

    def _served(self, session: Session, tokens: int) -> None:
        # Beyond its expected length there is nothing left to count down, but it is served.
        self.meter.served(tokens)
        left = self._running.get(session.request, 0)
        self._running[session.request] = max(0, left - tokens)
        self._running_tokens -= min(left, tokens)

    def _cost(self, prompt_tokens: int, generation: Generation) -> int:
        return prompt_tokens + min(generation.sampling.max_tokens, self._expected_output_tokens)
