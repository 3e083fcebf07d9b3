"""Placements change while nodes load, fail, die, join and leave in any order: nothing is lost.

The world refuses rows for slices that a node does not run under their epoch, compares every token
with an undisturbed run, and holds the books after every event.
"""

from __future__ import annotations

import contextlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helix_mq.errors import CapacityError, ContextExceeded, NotServing
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, uncovered
from helix_mq.messages.control import AssignFailed
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.searches import NothingFound
from router.service import Broken, Finished
from tests.router.moving_world import MEMORY, Moving

NAMES = "abcd"
NODES = st.sampled_from(NAMES)
PICK = st.integers(0, 1000)
RANGE = st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda r: r[0] < r[1])
START = {
    "a": LayerRange(0, 3),
    "b": LayerRange(3, 6),
    "c": LayerRange(0, 4),
    "d": LayerRange(2, 6),
}


@st.composite
def targets(draw: st.DrawFn) -> dict[str, LayerRange]:
    """Mostly whole placements: two adjoining pieces, and anything on the others."""
    border = draw(st.integers(1, 5))
    first, second, *others = draw(st.permutations(NAMES))
    target = {first: LayerRange(0, border), second: LayerRange(border, 6)}
    for name in others:
        ends = draw(st.none() | RANGE)
        if ends is not None:
            target[name] = LayerRange(*ends)
    return target


class Moves(RuleBasedStateMachine):
    @initialize(roomy=st.booleans())
    def start(self, roomy: bool) -> None:
        self.world = Moving(START, held_bytes=MEMORY // 4 if roomy else MEMORY)
        for node in NAMES:
            self.world.join_measured(node)

    @rule(prompt=st.lists(st.integers(0, 95), min_size=1, max_size=40), output=st.integers(1, 30))
    def submit(self, prompt: list[int], output: int) -> None:
        sampling = SamplingParams(max_tokens=output, seed=7, ignore_eos=True)
        with contextlib.suppress(CapacityError, ContextExceeded):
            self.world.submit(tuple(prompt), sampling, deadline_s=1e6)

    @precondition(lambda self: self.world.in_flight)
    @rule(picks=st.lists(PICK, min_size=1, max_size=30))
    def answer(self, picks: list[int]) -> None:
        for pick in picks:
            self._drop_stale()
            if self.world.in_flight:
                self.world.answer(pick % len(self.world.in_flight))

    def _drop_stale(self) -> None:
        """Rows of attempts that are over get nowhere."""
        sessions = self.world.core.sessions()
        self.world.in_flight = [
            row
            for row in self.world.in_flight
            if row.request in sessions and sessions[row.request].attempt == row.attempt
        ]

    @rule(wanted=targets())
    def place(self, wanted: dict[str, LayerRange]) -> None:
        refusal = self.world.place(wanted)
        if refusal is None or uncovered(6, wanted.values()):
            return
        absent = any(name not in self.world.core.cluster.membership for name in wanted)
        assert absent or refusal.code in ("no_way", "invalid_config")

    @precondition(lambda self: self.world.loading)
    @rule(pick=PICK)
    def load(self, pick: int) -> None:
        self.world.load(pick % len(self.world.loading))

    @precondition(lambda self: self.world.loading)
    @rule(pick=PICK, code=st.sampled_from(["no_room", "load_failed"]))
    def fail_to_load(self, pick: int, code: str) -> None:
        node, order = self.world.loading.pop(pick % len(self.world.loading))
        failure = AssignFailed(order.epoch, code, "because")
        self.world.handle(ev.NodeAssignFailed(NodeId(node), self.world.members[node], failure))

    @rule(node=NODES)
    def lose(self, node: str) -> None:
        if node in self.world.members:
            self.world.lose(node)

    @rule(node=NODES, load=st.booleans())
    def restart(self, node: str, load: bool) -> None:
        self.world.join_measured(node, load=load)

    @rule(node=NODES, asked=st.booleans())
    def leave(self, node: str, asked: bool) -> None:
        incarnation = self.world.members.get(node)
        if incarnation is None:
            return
        if asked:
            self.world.handle(ev.DrainWanted(NodeId(node)))
        else:
            self.world.handle(ev.NodeDraining(NodeId(node), incarnation))

    @precondition(lambda self: self.world.core.cluster.moves.replanner.searching)
    @rule(wanted=st.none() | targets())
    def search_ends(self, wanted: dict[str, LayerRange] | None) -> None:
        searched = self.world.searches[-1].search.problem.nodes
        names = {node.name for node in searched}
        if wanted is None or not wanted.keys() <= names:
            nothing = NothingFound("nothing fits")
            self.world.handle(ev.PlanFound(self.world.searches[-1].number, nothing))
        else:
            self.world.found(wanted)

    @rule(seconds=st.sampled_from([1, 5, 40]))
    def time_passes(self, seconds: int) -> None:
        self.world.pass_time(seconds)

    @invariant()
    def what_serves_is_loaded(self) -> None:
        if not hasattr(self, "world"):
            return
        for member in self.world.core.cluster.membership.serving():
            assert self.world.loaded[member.name, member.epoch] == member.layers

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for _ in range(20):
            for node in NAMES:
                if node not in world.members:
                    world.join_measured(node)
            world.load_all()
            self._drop_stale()
            world.run()
            if world.core.cluster.moves.replanner.searching:
                nothing = NothingFound("nothing fits")
                world.handle(ev.PlanFound(world.searches[-1].number, nothing))
            moves = world.core.cluster.moves
            if not (moves.busy or moves.unsettled or world.in_flight or world.loading):
                break
            world.pass_time(5)
        assert not moves.busy
        assert not moves.relocation.unsettled
        for stream in world.streams.values():
            if world.core.cluster.serving:
                assert isinstance(stream.end, Finished)
            elif isinstance(stream.end, Broken):
                assert isinstance(stream.end.error, NotServing)
        epochs = {epoch for _, epoch in world.loaded}
        assert epochs <= {world.core.cluster.epoch}


Moves.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestMoves = Moves.TestCase
