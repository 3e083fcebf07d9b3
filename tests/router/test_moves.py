"""Re-placements under load: new slices beside the old, epoch after epoch, nobody cut off."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.messages.control import (
    Assign,
    AssignFailed,
    Leave,
    Ready,
    Register,
    Retain,
    SliceRef,
    StepTimes,
)
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.cluster_core import ClusterCore, ClusterSettings
from router.core import Core, CoreSettings
from router.kv_books import KvBooks
from router.moves import MoveSettings
from router.placing import ProportionalPlacer
from router.replanner import ReplanSettings
from router.searches import Found, NothingFound
from router.service import Finished
from tests.router.world import CONFIG, DIGEST, PAGE_TOKENS, PAGES, World, register

TIMES = StepTimes(((1.0, 1e-3), (256.0, 1e-2)), ((1.0, 1e-3), (64.0, 2e-3)))
LONG = SamplingParams(max_tokens=12, seed=5, ignore_eos=True)
MEMORY = 1 << 20

HALVES = {"a": LayerRange(0, 3), "b": LayerRange(3, 6)}


class Moving(World):
    """A world whose nodes load what they are told and free what they are told."""

    def __init__(
        self,
        now: Mapping[str, LayerRange],
        *,
        held_bytes: int = MEMORY // 4,
        replan: ReplanSettings = ReplanSettings(automatic=False),
    ) -> None:
        super().__init__(slices=now)
        placer = ProportionalPlacer(CONFIG, len(now))
        placer.adopt({NodeId(n): r for n, r in now.items()})
        settings = ClusterSettings(moves=MoveSettings(replan=replan))
        cluster = ClusterCore(CONFIG, DIGEST, settings, placer, self.clock, self.core.cluster.epoch)
        self.core = Core(CONFIG, CoreSettings(), cluster, KvBooks(0.9), self.clock, self._new_text)
        self.held_bytes = held_bytes
        self.searches: list[ev.PlanWanted] = []
        self.retained: dict[str, tuple[int, ...]] = {}
        self.loading: list[tuple[str, Assign]] = []
        self.notes: list[str] = []
        self.loaded: dict[tuple[str, int], LayerRange] = {}
        for node in sorted(now):
            self.join_measured(node)

    def join_measured(self, node: str) -> None:
        self.join_as(node, msgspec.structs.replace(register(node, 0, memory=MEMORY), times=TIMES))

    def join_as(self, node: str, said: Register) -> None:
        incarnation = next(self._incarnations)
        if node in self.members:
            self._forget(node, self.members[node])
        self.members[node] = incarnation
        self.handle(ev.NodeRegistered(msgspec.structs.replace(said, incarnation=incarnation)))
        self.load_all()

    def _book(self, effect: ev.Effect) -> None:
        super()._book(effect)
        match effect:
            case ev.PlanWanted():
                self.searches.append(effect)
            case ev.ToNode(node, _, Assign() as order):
                self.loading.append((node, order))
            case ev.ToNode(node, _, Retain(epochs)):
                self.retained[node] = epochs
                for key in [k for k in self.loaded if k[0] == node and k[1] not in epochs]:
                    del self.loaded[key]
            case ev.Note():
                self.notes.append(effect.text)
            case _:
                pass

    def _served(self, node: str, epoch: int) -> LayerRange | None:
        return self.loaded.get((node, epoch))

    def _forget(self, node: str, incarnation: int) -> None:
        super()._forget(node, incarnation)
        self.loaded = {k: v for k, v in self.loaded.items() if k[0] != node}

    def load_all(self) -> None:
        while self.loading:
            self.load(0)

    def load(self, index: int) -> None:
        node, order = self.loading.pop(index)
        self.loaded[node, order.epoch] = LayerRange(order.first, order.end)
        said = Ready(
            order.epoch,
            order.first,
            order.end,
            PAGES,
            PAGE_TOKENS,
            0.1,
            1000.0,
            "",
            self.held_bytes,
        )
        self.handle(ev.NodeReady(NodeId(node), self.members[node], said))

    def found(self, target: Mapping[str, LayerRange], then: float = 200.0, now: float = 100.0):  # type: ignore[no-untyped-def]
        slices = {NodeId(n): r for n, r in target.items()}
        answer = Found(slices, then, now, "test")
        return self.handle(ev.PlanFound(self.searches[-1].number, answer))

    def replan(self, target: Mapping[str, LayerRange]) -> None:
        self.handle(ev.ReplanWanted())
        assert self.searches
        self.found(target)
        self.handle(ev.Tick())

    @property
    def slices(self) -> dict[str, LayerRange]:
        if not hasattr(self, "core"):
            return self._slices
        return {m.name: m.layers for m in self.core.cluster.membership if m.layers is not None}

    @slices.setter
    def slices(self, value: dict[str, LayerRange]) -> None:
        self._slices = value


def test_new_slices_load_beside_the_old_and_nobody_is_moved() -> None:
    world = Moving(HALVES)
    before = [world.submit((i, 2), LONG) for i in range(4)]
    epoch = world.core.cluster.epoch
    target = {"a": LayerRange(0, 2), "b": LayerRange(2, 6)}
    world.replan(target)
    assert [(n, o.first, o.end) for n, o in world.loading] == [("a", 0, 2), ("b", 2, 6)]
    assert world.slices == HALVES
    during = world.submit((7, 7), LONG)
    assert world.core.sessions()[during].epoch == epoch
    world.load(0)
    assert world.slices == HALVES
    world.load(0)
    assert world.slices == target
    after = world.submit((8, 8), LONG)
    assert world.core.sessions()[after].epoch == world.core.cluster.epoch > epoch
    world.handle(ev.Tick())
    assert world.retained == dict.fromkeys("ab", (epoch, world.core.cluster.epoch))
    world.run()
    world.handle(ev.Tick())
    assert world.retained == dict.fromkeys("ab", (world.core.cluster.epoch,))
    assert not world.core.cluster.moves.unsettled
    for request in [*before, during, after]:
        end = world.streams[request].end
        assert isinstance(end, Finished)
        assert end.reroutes == 0


def test_requests_that_stay_too_long_on_old_slices_are_moved_and_lose_nothing() -> None:
    world = Moving(HALVES)
    request = world.submit((1, 2), LONG)
    world.answer()
    world.replan({"a": LayerRange(0, 2), "b": LayerRange(2, 6)})
    world.load_all()
    world.pass_time(31)
    session = world.core.sessions()[request]
    assert session.epoch == world.core.cluster.epoch
    assert session.reroutes == 1
    world.in_flight = [r for r in world.in_flight if r.attempt == session.attempt]
    world.run()
    assert isinstance(world.streams[request].end, Finished)
    world.handle(ev.Tick())
    assert set(world.retained.values()) == {(world.core.cluster.epoch,)}


def test_a_node_that_keeps_its_slice_keeps_its_requests_beyond_the_time_limit() -> None:
    now = {"a": LayerRange(0, 6), "b": LayerRange(0, 3)}
    world = Moving(now)
    requests = [world.submit((i, 2), LONG) for i in range(4)]
    world.replan({"a": LayerRange(0, 6), "b": LayerRange(0, 6)})
    world.load_all()
    world.pass_time(40)
    kept = [r for r in requests if world.core.sessions()[r].route.nodes == ("a",)]  # type: ignore[union-attr]
    assert kept
    assert all(world.core.sessions()[r].reroutes == 0 for r in kept)
    assert world.retained["b"] == (world.core.cluster.epoch,)


def test_nodes_without_room_change_one_after_the_other() -> None:
    now = {"a": LayerRange(0, 3), "b": LayerRange(0, 3), "c": LayerRange(3, 6)}
    world = Moving(now, held_bytes=MEMORY)
    target = {"a": LayerRange(0, 3), "b": LayerRange(3, 6), "c": LayerRange(3, 6)}
    world.replan(target)
    world.load_all()
    # b has left: it serves nothing, and its slice is freed before it is given another.
    assert world.slices == {"a": LayerRange(0, 3), "c": LayerRange(3, 6)}
    world.handle(ev.Tick())
    assert world.retained["b"] == ()
    world.handle(ev.Tick())
    world.load_all()
    assert world.slices == target


def test_no_order_without_an_outage_is_said_and_nothing_moves() -> None:
    world = Moving(HALVES, held_bytes=MEMORY)
    world.replan({"a": LayerRange(0, 2), "b": LayerRange(2, 6)})
    assert world.loading == []
    assert "cannot hold old and new layers at once" in world.core.cluster.moves.replanner.last_text


def test_no_room_after_all_is_another_order_or_an_end() -> None:
    world = Moving(HALVES)
    world.replan({"a": LayerRange(0, 2), "b": LayerRange(2, 6)})
    node, order = world.loading.pop(0)
    failure = AssignFailed(order.epoch, "no_room", "8 MiB are left")
    world.handle(ev.NodeAssignFailed(NodeId(node), world.members[node], failure))
    assert world.slices == HALVES
    world.loading.clear()
    world.handle(ev.Tick())
    assert world.retained == dict.fromkeys("ab", (world.core.cluster.epoch,))
    assert any("8 MiB are left" in text for text in world.notes)


def test_a_node_lost_in_the_middle_ends_a_move_that_needs_it() -> None:
    now = {**HALVES, "c": LayerRange(0, 3)}
    world = Moving(now)
    requests = [world.submit((i, 2), LONG) for i in range(4)]
    target = {"a": LayerRange(0, 6), "b": LayerRange(3, 6), "c": LayerRange(0, 1)}
    world.replan(target)
    world.lose("a")
    assert not world.core.cluster.moves.busy
    assert world.core.cluster.serving
    assert any("a is gone, which the next one needs" in text for text in world.notes)
    drop = {r.request for r in world.in_flight if "a" in r.route.nodes}
    world.in_flight = [
        r
        for r in world.in_flight
        if r.request not in drop or r.attempt == world.core.sessions()[r.request].attempt
    ]
    world.run()
    assert all(isinstance(world.streams[r].end, Finished) for r in requests)


def test_a_node_lost_in_the_middle_that_nobody_needs_is_left_out() -> None:
    now = {**HALVES, "c": LayerRange(0, 3)}
    world = Moving(now)
    target = {"a": LayerRange(0, 6), "b": LayerRange(0, 6), "c": LayerRange(0, 1)}
    world.replan(target)
    world.lose("c")
    world.loading = [(n, o) for n, o in world.loading if n != "c"]
    world.load_all()
    assert world.slices == {"a": LayerRange(0, 6), "b": LayerRange(0, 6)}


def test_an_operator_is_told_why_a_node_cannot_leave() -> None:
    world = Moving(HALVES)
    world.handle(ev.DrainWanted(NodeId("a")))
    assert world.searches
    assert [n.name for n in world.searches[-1].search.problem.nodes] == ["b"]
    nothing = NothingFound("b has room for 4 layers of 6")
    world.handle(ev.PlanFound(world.searches[-1].number, nothing))
    assert any(
        "does not leave: layers 0-2 would be on no node" in text and "room for 4" in text
        for text in world.notes
    )
    world.pass_time(60)
    assert "a" in world.core.cluster.membership


def test_a_node_that_is_alone_with_its_layers_leaves_after_they_are_elsewhere() -> None:
    world = Moving(HALVES)
    requests = [world.submit((i, 2), LONG) for i in range(4)]
    world.handle(ev.DrainWanted(NodeId("a")))
    world.found({"b": LayerRange(0, 6)})
    world.handle(ev.Tick())
    assert world.core.cluster.serving
    world.load_all()
    assert world.slices == {"b": LayerRange(0, 6)}
    world.handle(ev.Tick())
    assert "a" in world.core.cluster.membership
    world.run()
    world.effects.clear()
    world.handle(ev.Tick())
    left = [e for e in world.effects if isinstance(e, ev.ToNode) and isinstance(e.message, Leave)]
    assert [e.node for e in left] == ["a"]
    for request in requests:
        end = world.streams[request].end
        assert isinstance(end, Finished)
        assert end.reroutes == 0


def test_a_process_that_ends_is_not_held_when_nobody_may_look_for_another_placement() -> None:
    world = Moving(HALVES)
    world.handle(ev.NodeDraining(NodeId("a"), world.members["a"]))
    assert world.searches == []
    assert "a" not in world.core.cluster.membership
    assert not world.core.cluster.serving


def test_a_lost_nodes_layers_go_to_others_when_it_does_not_come_back() -> None:
    world = Moving(HALVES, replan=ReplanSettings(return_s=15))
    world.lose("a")
    world.pass_time(14)
    assert world.searches == []
    world.pass_time(3)
    assert len(world.searches) == 1
    world.found({"b": LayerRange(0, 6)})
    world.handle(ev.Tick())
    world.load_all()
    assert world.core.cluster.serving


def test_who_joins_is_put_to_use_when_that_pays() -> None:
    world = Moving(HALVES, replan=ReplanSettings(settle_s=5, every_s=1))
    world.join_measured("c")
    world.pass_time(6)
    assert len(world.searches) == 1
    world.found({**HALVES, "c": LayerRange(0, 6)}, then=101, now=100)
    assert world.loading == []
    assert any("no gain of 5%" in text for text in world.notes)
    world.join_measured("c")
    world.pass_time(6)
    world.found({**HALVES, "c": LayerRange(0, 6)}, then=200, now=100)
    world.handle(ev.Tick())
    world.load_all()
    assert world.slices["c"] == LayerRange(0, 6)


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_node_that_reconnects_in_the_middle_keeps_both_slices(which: str) -> None:
    world = Moving(HALVES)
    request = world.submit((1, 2), LONG)
    old = SliceRef(world.core.cluster.epoch, 0, 3)
    world.replan({"a": LayerRange(0, 2), "b": LayerRange(2, 6)})
    epoch = world.loading[0][1].epoch
    if which == "new":
        world.load(0)
    holding = old if which == "old" else SliceRef(epoch, 0, 2)
    said = register("a", world.members["a"], memory=MEMORY)
    world.handle(ev.NodeRegistered(msgspec.structs.replace(said, times=TIMES, holding=holding)))
    assert world.core.sessions()[request].reroutes == 0
    world.load_all()
    assert world.slices == {"a": LayerRange(0, 2), "b": LayerRange(2, 6)}


def test_the_first_placement_is_the_planners_where_nodes_have_measured_themselves() -> None:
    world = Moving(HALVES)
    placer = ProportionalPlacer(CONFIG, 2, planned=True)
    cluster = ClusterCore(
        CONFIG, DIGEST, ClusterSettings(), placer, world.clock, world.core.cluster.epoch
    )
    world.core = Core(CONFIG, CoreSettings(), cluster, KvBooks(0.9), world.clock, world._new_text)
    world.members.clear()
    world.holds.clear()
    world.join_measured("a")
    assert "1 more node to join" in cluster.why_not_serving()
    assert world.searches == []
    world.join_measured("b")
    assert "waiting for the planner" in cluster.why_not_serving()
    world.found({"a": LayerRange(0, 1), "b": LayerRange(1, 6)})
    world.load_all()
    assert Placement(6, cluster.membership.live_placement().slices).missing() == ()
    assert world.slices == {"a": LayerRange(0, 1), "b": LayerRange(1, 6)}


def test_without_a_plan_the_first_placement_is_a_split_by_memory() -> None:
    world = Moving(HALVES)
    placer = ProportionalPlacer(CONFIG, 2, planned=True)
    cluster = ClusterCore(
        CONFIG, DIGEST, ClusterSettings(), placer, world.clock, world.core.cluster.epoch
    )
    world.core = Core(CONFIG, CoreSettings(), cluster, KvBooks(0.9), world.clock, world._new_text)
    world.members.clear()
    world.holds.clear()
    world.join_measured("a")
    world.join_measured("b")
    nothing = NothingFound("the planning process died")
    world.handle(ev.PlanFound(world.searches[-1].number, nothing))
    world.load_all()
    assert world.slices == HALVES
    assert cluster.serving
