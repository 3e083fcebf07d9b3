"""Re-placements under load: new slices beside the old, epoch after epoch, nobody cut off."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.messages.control import AssignFailed, Leave, SliceRef
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.placing import ProportionalPlacer
from router.replanner import ReplanSettings
from router.searches import NothingFound
from router.service import Finished
from tests.router.moving_world import MEMORY, TIMES, Moving
from tests.router.world import CONFIG, register

LONG = SamplingParams(max_tokens=12, seed=5, ignore_eos=True)
HALVES = {"a": LayerRange(0, 3), "b": LayerRange(3, 6)}


def moving(now: Mapping[str, LayerRange], **more: object) -> Moving:
    world = Moving(now, **more)  # type: ignore[arg-type]
    for node in sorted(now):
        world.join_measured(node)
    return world


def test_new_slices_load_beside_the_old_and_nobody_is_moved() -> None:
    world = moving(HALVES)
    before = [world.submit((i, 2), LONG) for i in range(4)]
    epoch = world.core.cluster.epoch
    target = {"a": LayerRange(0, 2), "b": LayerRange(2, 6)}
    world.replan(target)
    assert [(n, o.first, o.end) for n, o in world.loading] == [("a", 0, 2), ("b", 2, 6)]
    assert world.placed == HALVES
    during = world.submit((7, 7), LONG)
    assert world.core.sessions()[during].epoch == epoch
    world.load(0)
    assert world.placed == HALVES
    world.load(0)
    assert world.placed == target
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
    world = moving(HALVES)
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


@pytest.mark.parametrize("stays", [False, True])
def test_a_node_without_a_slice_any_more_frees_its_old_one(stays: bool) -> None:
    """When its requests have ended, or have stayed for too long."""
    world = moving(HALVES)
    requests = [world.submit((i, 2), LONG) for i in range(4)]
    old = world.core.cluster.epoch
    world.replan({"a": LayerRange(0, 6)})
    world.load_all()
    world.handle(ev.Tick())
    assert world.retained["b"] == (old,)
    if stays:
        world.pass_time(31)
        sessions = world.core.sessions()
        world.in_flight = [r for r in world.in_flight if r.attempt == sessions[r.request].attempt]
    world.run()
    world.handle(ev.Tick())
    assert world.retained["b"] == ()
    assert {node for node, _ in world.loaded} == {"a"}
    assert all(isinstance(world.streams[request].end, Finished) for request in requests)


def test_a_node_that_keeps_its_slice_keeps_its_requests_beyond_the_time_limit() -> None:
    now = {"a": LayerRange(0, 6), "b": LayerRange(0, 3)}
    world = moving(now)
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
    world = moving(now, held_bytes=MEMORY)
    target = {"a": LayerRange(0, 3), "b": LayerRange(3, 6), "c": LayerRange(3, 6)}
    world.replan(target)
    world.load_all()
    # b has left: it serves nothing, and its slice is freed before it is given another.
    assert world.placed == {"a": LayerRange(0, 3), "c": LayerRange(3, 6)}
    world.handle(ev.Tick())
    assert world.retained["b"] == ()
    world.handle(ev.Tick())
    world.load_all()
    assert world.placed == target


def test_no_order_without_an_outage_is_said_and_nothing_moves() -> None:
    world = moving(HALVES, held_bytes=MEMORY)
    world.replan({"a": LayerRange(0, 2), "b": LayerRange(2, 6)})
    assert world.loading == []
    assert "cannot hold old and new layers at once" in world.core.cluster.moves.replanner.last_text


def test_no_room_after_all_is_another_order_or_an_end() -> None:
    world = moving(HALVES)
    world.replan({"a": LayerRange(0, 2), "b": LayerRange(2, 6)})
    node, order = world.loading.pop(0)
    failure = AssignFailed(order.epoch, "no_room", "8 MiB are left")
    world.handle(ev.NodeAssignFailed(NodeId(node), world.members[node], failure))
    assert world.placed == HALVES
    world.loading.clear()
    world.handle(ev.Tick())
    assert world.retained == dict.fromkeys("ab", (world.core.cluster.epoch,))
    assert any("8 MiB are left" in text for text in world.notes)


def test_a_node_lost_in_the_middle_ends_a_move_that_needs_it() -> None:
    now = {**HALVES, "c": LayerRange(0, 3)}
    world = moving(now)
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
    world = moving(now)
    target = {"a": LayerRange(0, 6), "b": LayerRange(0, 6), "c": LayerRange(0, 1)}
    world.replan(target)
    world.lose("c")
    world.loading = [(n, o) for n, o in world.loading if n != "c"]
    world.load_all()
    assert world.placed == {"a": LayerRange(0, 6), "b": LayerRange(0, 6)}


def test_who_was_lost_in_the_middle_has_its_new_slice_when_it_comes_back() -> None:
    now = {**HALVES, "c": LayerRange(0, 3)}
    world = moving(now)
    target = {"a": LayerRange(0, 6), "b": LayerRange(0, 6), "c": LayerRange(0, 1)}
    world.replan(target)
    world.lose("c")
    world.loading = [(n, o) for n, o in world.loading if n != "c"]
    world.load(0)
    world.join_measured("c", load=False)
    assert "c" not in dict(world.loading), "it waits for what is being made"
    world.load_all()
    assert world.placed == target

    world.lose("c")
    world.join_measured("c")
    assert world.placed == target


def test_who_is_back_before_the_last_step_takes_part_in_it() -> None:
    low, high = LayerRange(0, 3), LayerRange(3, 6)
    now = {"a": low, "b": high, "c": low, "d": high}
    world = moving(now, held_bytes=MEMORY)
    target = {"a": high, "b": low, "c": low, "d": high}
    old = SliceRef(world.core.cluster.epoch, low.first, low.end)
    world.replan(target)
    world.load_all()
    assert "a" not in world.placed, "there is no room to change in one step"
    request = world.submit((1, 2), LONG)
    world.lose("d")
    world.handle(ev.Tick())
    world.load_all()
    said = msgspec.structs.replace(register("d", 0, memory=MEMORY), times=TIMES, holding=old)
    world.join_as("d", said, load=False)
    world.run()
    for _ in range(10):
        world.handle(ev.Tick())
        world.load_all()
    assert not world.core.cluster.moves.busy
    assert world.placed == target
    assert isinstance(world.streams[request].end, Finished)
    world.handle(ev.Tick())
    assert world.retained["d"] == (world.core.cluster.epoch,)


def test_who_left_in_the_middle_has_no_place_any_more() -> None:
    now = {**HALVES, "c": LayerRange(0, 3)}
    world = moving(now)
    target = {"a": LayerRange(0, 6), "b": LayerRange(0, 6), "c": LayerRange(0, 1)}
    world.replan(target)
    world.handle(ev.NodeDraining(NodeId("c"), world.members["c"]))
    world.handle(ev.Tick())
    assert "c" not in world.core.cluster.membership
    world.loading = [(n, o) for n, o in world.loading if n != "c"]
    world.load_all()
    world.join_measured("c")
    assert world.placed == {"a": LayerRange(0, 6), "b": LayerRange(0, 6)}


def test_an_operator_is_told_why_a_node_cannot_leave() -> None:
    world = moving(HALVES)
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
    world = moving(HALVES)
    requests = [world.submit((i, 2), LONG) for i in range(4)]
    world.handle(ev.DrainWanted(NodeId("a")))
    world.found({"b": LayerRange(0, 6)})
    world.handle(ev.Tick())
    assert world.core.cluster.serving
    world.load_all()
    assert world.placed == {"b": LayerRange(0, 6)}
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
    world = moving(HALVES)
    world.handle(ev.NodeDraining(NodeId("a"), world.members["a"]))
    assert world.searches == []
    assert "a" not in world.core.cluster.membership
    assert not world.core.cluster.serving


def test_a_lost_nodes_layers_go_to_others_when_it_does_not_come_back() -> None:
    world = moving(HALVES, replan=ReplanSettings(return_s=15))
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
    world = moving(HALVES, replan=ReplanSettings(settle_s=5, every_s=1))
    world.join_measured("c")
    world.pass_time(6)
    assert len(world.searches) == 1
    world.found({**HALVES, "c": LayerRange(0, 6)}, then=101)
    assert world.loading == []
    assert any("no gain of 5%" in text for text in world.notes)
    world.join_measured("c")
    world.pass_time(6)
    world.found({**HALVES, "c": LayerRange(0, 6)}, then=200)
    world.handle(ev.Tick())
    world.load_all()
    assert world.placed["c"] == LayerRange(0, 6)


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_node_that_reconnects_in_the_middle_keeps_both_slices(which: str) -> None:
    world = moving(HALVES)
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
    assert world.placed == {"a": LayerRange(0, 2), "b": LayerRange(2, 6)}


def test_the_first_placement_is_the_planners_where_nodes_have_measured_themselves() -> None:
    world = Moving(HALVES, placer=ProportionalPlacer(CONFIG, 2, planned=True))
    cluster = world.core.cluster
    world.join_measured("a")
    assert "1 more node to join" in cluster.why_not_serving()
    assert world.searches == []
    world.join_measured("b")
    assert "waiting for the planner" in cluster.why_not_serving()
    world.found({"a": LayerRange(0, 1), "b": LayerRange(1, 6)})
    world.load_all()
    assert Placement(6, cluster.membership.live_placement().slices).missing() == ()
    assert world.placed == {"a": LayerRange(0, 1), "b": LayerRange(1, 6)}


def test_without_a_plan_the_first_placement_is_a_split_by_memory() -> None:
    world = Moving(HALVES, placer=ProportionalPlacer(CONFIG, 2, planned=True))
    cluster = world.core.cluster
    world.join_measured("a")
    world.join_measured("b")
    nothing = NothingFound("the planning process died")
    world.handle(ev.PlanFound(world.searches[-1].number, nothing))
    world.load_all()
    assert world.placed == HALVES
    assert cluster.serving


@pytest.mark.parametrize("asked", [True, False])
def test_an_answer_that_counts_on_a_leaver_says_nothing_of_its_leaving(asked: bool) -> None:
    world = moving({**HALVES, "c": LayerRange(0, 3)}, replan=ReplanSettings(settle_s=5, every_s=1))
    world.pass_time(6)
    assert len(world.searches) == 1
    b = NodeId("b")
    world.handle(ev.DrainWanted(b) if asked else ev.NodeDraining(b, world.members["b"]))
    world.found({**HALVES, "c": LayerRange(0, 3)}, then=101)
    assert not any("does not leave" in text for text in world.notes)
    assert world.core.cluster.serving
    world.handle(ev.Tick())
    assert [n.name for n in world.searches[-1].search.problem.nodes] == ["a", "c"]
    world.found({"a": LayerRange(0, 6), "c": LayerRange(0, 3)})
    world.handle(ev.Tick())
    world.load_all()
    world.handle(ev.Tick())
    assert "b" not in world.core.cluster.membership
    assert world.core.cluster.serving
