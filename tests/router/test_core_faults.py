"""The core under faults in any order that hypothesis can think of; the world checks every step.

What holds after each event is in `World.check`; here at the end the cluster is healed, and every
stream must end, once, as one undisturbed machine would have ended it.
"""

from __future__ import annotations

import contextlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from helix_mq.errors import ContextExceeded, QueueFull
from helix_mq.ids import NodeId
from helix_mq.messages.data import TokenItem
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.core import CoreSettings
from router.schedulers_base import METHODS, Method, Scheduling
from router.schedulers_simple import ShortestQueueScheduler
from router.service import Finished
from tests.router.world import SLICES, World

NODES = st.sampled_from(sorted(SLICES))
PICK = st.integers(0, 1 << 16)
PASSING_CODES = st.sampled_from(
    ["kv_exhausted", "stale_epoch", "not_held", "out_of_order", "link_lost", "step_failed"]
)


class Faults(RuleBasedStateMachine):
    world: World

    @initialize(method=st.sampled_from(METHODS), seed=st.integers(0, 99))
    def start(self, method: Method, seed: int) -> None:
        # So little room that requests wait, and outgrow what was reserved for them.
        scheduling = Scheduling(method, seed)
        tight = CoreSettings(max_waiting=6, expected_output_tokens=8, scheduling=scheduling)
        self.world = World(tight, recover_s=1e6)
        for node in sorted(SLICES):
            self.world.join(node, pages=40)

    @invariant()
    def nothing_waits_that_could_start(self) -> None:
        """The core looks for routes only after events that may have opened one."""
        core = self.world.core
        core._may_start, core._effects = True, []
        core._pump()
        assert not core._effects

    @rule(
        prompt=st.lists(st.integers(0, 95), min_size=1, max_size=70),
        output=st.integers(1, 60),
        seed=st.integers(0, 1 << 30),
        priority=st.integers(0, 1),
        ignore_eos=st.booleans(),
    )
    def submit(
        self, prompt: list[int], output: int, seed: int, priority: int, ignore_eos: bool
    ) -> None:
        sampling = SamplingParams(max_tokens=output, seed=seed, ignore_eos=ignore_eos)
        # A full queue, or a prompt beyond the room: refused, and nothing has changed.
        with contextlib.suppress(QueueFull, ContextExceeded):
            self.world.submit(tuple(prompt), sampling, priority=priority, deadline_s=1e6)

    @precondition(lambda self: self.world.in_flight)
    @rule(picks=st.lists(PICK, min_size=1, max_size=30))
    def answer(self, picks: list[int]) -> None:
        for pick in picks:
            if self.world.in_flight:
                self.world.answer(pick % len(self.world.in_flight))

    @precondition(lambda self: self.world.in_flight)
    @rule(pick=PICK, hop=st.integers(0, 2), code=PASSING_CODES)
    def refuse(self, pick: int, hop: int, code: str) -> None:
        self.world.refuse(pick % len(self.world.in_flight), hop, code)

    @precondition(lambda self: self.world.answered)
    @rule(pick=PICK)
    def repeat_a_token(self, pick: int) -> None:
        node, item = self.world.answered[pick % len(self.world.answered)]
        effects = self.world.tokens(node, item)
        assert not any(isinstance(e, ev.Emit) for e in effects)

    @precondition(lambda self: self.world.answered)
    @rule(pick=PICK, token=st.integers(0, 95), ahead=st.integers(2, 4))
    def skip_a_token(self, pick: int, token: int, ahead: int) -> None:
        node, last = self.world.answered[pick % len(self.world.answered)]
        session = self.world.core.sessions().get(last.request)  # type: ignore[call-overload]
        if session is not None:
            at = session.length_tokens + ahead
            assert not self.world.tokens(node, TokenItem(last.request, session.attempt, at, token))

    @rule(node=NODES)
    def lose(self, node: str) -> None:
        if node in self.world.members:
            self.world.lose(node)

    @rule(node=NODES)
    def fall_silent(self, node: str) -> None:
        if node in self.world.members:
            self.world.pass_time(5, frozenset({node}))
            assert node not in self.world.members

    @rule(node=NODES)
    def restart(self, node: str) -> None:
        self.world.join(node, pages=40)

    @rule(node=NODES)
    def drain(self, node: str) -> None:
        incarnation = self.world.members.get(node)
        if incarnation is not None:
            self.world.handle(ev.NodeDraining(NodeId(node), incarnation))

    @rule(node=NODES)
    def speak_as_a_dead_process(self, node: str) -> None:
        before = set(self.world.core.sessions())
        self.world.handle(ev.NodeGone(NodeId(node), 1, "an old goodbye"))
        assert set(self.world.core.sessions()) == before

    @rule(node=NODES)
    def lose_the_routers_link(self, node: str) -> None:
        """Rows on their way to the node are lost; answers of rows past it still come, too late."""
        self.world.in_flight = [
            row for row in self.world.in_flight if row.route.hops[0].node != node
        ]
        self.world.handle(ev.LinkLost(NodeId(node)))

    @rule(node=NODES, other=st.sampled_from([*sorted(SLICES), "router"]), up=st.booleans())
    def report_a_link(self, node: str, other: str, up: bool) -> None:
        """Rows that wait for the link get nowhere when it is down; the world's `in_flight` may
        answer them still, as those that had passed it would be."""
        if node in self.world.members:
            self.world.beat(node, **{other: 0.0 if up else 4.0})

    @rule(node=NODES, up=st.booleans())
    def see_an_own_link(self, node: str, up: bool) -> None:
        self.world.handle(ev.OwnLinks(((NodeId(node), 0.0 if up else 4.0),)))

    @precondition(lambda self: self.world.core.sessions())
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        requests = sorted(self.world.core.sessions())
        request = requests[pick % len(requests)]
        self.world.cancel(request)
        end = self.world.streams[request].end
        assert isinstance(end, Finished)
        assert end.finish_reason == "cancelled"

    @rule()
    def time_passes(self) -> None:
        self.world.pass_time(1)

    def teardown(self) -> None:
        world = self.world
        # One last re-route gives every lost row a new attempt.
        for node in sorted(SLICES):
            world.join(node, pages=40)
        world.run()
        assert not world.core.sessions()
        scheduler = world.core._scheduler
        if isinstance(scheduler, ShortestQueueScheduler):
            assert [scheduler.outstanding(NodeId(node)) for node in sorted(SLICES)] == [0] * 4
        assert world.core.statistics().waiting == world.core.statistics().running == 0
        for stream in world.streams.values():
            assert isinstance(stream.end, Finished), (
                "no stream was moved often enough to be given up"
            )


Faults.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestFaults = Faults.TestCase
