"""Membership: names belong to the newest process; silence; what is missing, in words."""

from __future__ import annotations

import logging

import pytest
from msgspec.structs import replace

from helix_mq.errors import ConfigError
from helix_mq.ids import Epoch, NodeId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import (
    Assign,
    AssignFailed,
    Leave,
    Ready,
    RegisterAgain,
    Rejected,
    SliceRef,
)
from router import events as ev
from router.membership import Membership, NodeState
from router.placing import ProportionalPlacer
from tests.router.world import CONFIG, World, register

HALVES = {"a": LayerRange(0, 3), "b": LayerRange(3, 6)}
READY = Ready(Epoch(7), 0, 3, 60, 16, 0.1, 1000.0, "")


def replies(effects: list[ev.Effect], node: str) -> list[object]:
    return [e.message for e in effects if isinstance(e, ev.ToNode) and e.node == node]


def test_a_name_belongs_to_the_newest_process() -> None:
    members = Membership(6)
    members.join(register("a", 1), 0.0)
    members.join(register("a", 2), 1.0)
    assert members.is_current("a", 2)
    assert not members.is_current("a", 1)
    assert members.hear("a", 1, 5.0) is None
    member = members.hear("a", 2, 5.0)
    assert member is not None
    assert member.last_heard_s == 5.0


def test_a_loading_node_may_be_silent_ten_times_as_long() -> None:
    members = Membership(6)
    for name in ("a", "b"):
        members.join(register(name, 1), 0.0)
    loading = members.get("b")
    assert loading is not None
    loading.state = NodeState.LOADING
    assert [m.name for m in members.silent(3.0, 3.0)] == []
    assert [m.name for m in members.silent(3.1, 3.0)] == ["a"]
    assert [m.name for m in members.silent(30.1, 3.0)] == ["a", "b"]


def test_a_router_that_stood_still_holds_nobody_for_silent() -> None:
    members = Membership(6)
    for name, heard_s in (("a", 9.9), ("b", 7.5)):
        members.join(register(name, 1), heard_s)
    members.looked(10.0, 0.9)
    assert [m.name for m in members.silent(10.6, 3.0)] == ["b"], "a short pause changes nothing"
    members.looked(110.0, 100.0)
    assert members.silent(110.0, 3.0) == []
    assert [m.name for m in members.silent(110.6, 3.0)] == ["b"], "its silence before counts"
    assert [m.name for m in members.silent(113.0, 3.0)] == ["a", "b"]


def test_iteration_is_by_name_whatever_the_order_of_joining() -> None:
    members = Membership(6)
    for name in ("c", "a", "b"):
        members.join(register(name, 1), 0.0)
    assert [m.name for m in members] == ["a", "b", "c"]
    assert members.leave("b") is not None
    assert members.leave("b") is None
    assert "b" not in members


def test_a_feature_is_asked_only_of_nodes_that_all_registered_it() -> None:
    membership = Membership(6)
    membership.join(replace(register("a", 1), features=("verify", "direct")), 0.0)
    membership.join(replace(register("b", 1), features=("verify",)), 0.0)
    assert membership.all_can([NodeId("a"), NodeId("b")], "verify")
    assert not membership.all_can([NodeId("a"), NodeId("b")], "direct")
    assert not membership.all_can([NodeId("a"), NodeId("c")], "verify")


def test_what_is_missing_is_said_with_its_reasons() -> None:
    members = Membership(6)
    assert members.missing_text() == "layers 0-5 are on no live node"
    states = {
        "a": (LayerRange(0, 2), NodeState.LOADING),
        "b": (LayerRange(2, 3), NodeState.FAILED),
        "c": (LayerRange(3, 6), NodeState.READY),
    }
    for name, (layers, state) in states.items():
        member = members.join(register(name, 1), 0.0)
        member.layers, member.state, member.failure = layers, state, "no memory"
    assert members.missing_text() == (
        "layers 0-2 are on no live node "
        "(a is loading layers 0-1; b could not load layer 2: no memory)"
    )
    for member in members:
        member.state = NodeState.READY
    assert members.missing_text() == ""
    leaving = members.missing_text({NodeId("b")})
    assert leaving == "layer 2 is on no live node (b is leaving)"


def test_another_model_is_rejected_in_words() -> None:
    world = World(slices=HALVES)
    other = register("a", 1, digest="f" * 32)
    effects = world.core.handle(ev.NodeRegistered(other))
    (no,) = replies(effects, "a")
    assert isinstance(no, Rejected)
    assert no.code == "wrong_model"
    assert "ffffffffffff" in no.reason
    assert "a" not in world.core.cluster.membership


def test_beats_of_the_unknown_and_of_the_superseded_are_answered() -> None:
    world = World(slices=HALVES)
    world.members["a"] = 5
    (again,) = replies(world.beat("a"), "a")
    assert isinstance(again, RegisterAgain)
    del world.members["a"]
    world.join("a")
    current = world.members["a"]
    world.members["a"] = 5
    (no,) = replies(world.beat("a"), "a")
    assert isinstance(no, Rejected)
    assert no.code == "superseded"
    world.members["a"] = current
    assert replies(world.beat("a"), "a") == []


def test_readiness_counts_only_for_what_was_assigned() -> None:
    world = World(slices=HALVES)
    incarnation = world.join("a", ready=False)
    node = NodeId("a")
    wrong = [
        ev.NodeReady(node, incarnation + 1, READY),
        ev.NodeReady(node, incarnation, Ready(Epoch(6), 0, 3, 60, 16, 0.1, 1e3, "")),
        ev.NodeReady(node, incarnation, Ready(Epoch(7), 0, 2, 60, 16, 0.1, 1e3, "")),
        ev.NodeReady(NodeId("zz"), 1, READY),
    ]
    for event in wrong:
        assert world.handle(event) == []
    assert world.core.cluster.membership.serving() == []
    world.handle(ev.NodeReady(node, incarnation, READY))
    assert [m.name for m in world.core.cluster.membership.serving()] == ["a"]
    assert world.handle(ev.NodeReady(node, incarnation, READY)) == []


def test_the_same_process_reconnecting_with_its_slice_goes_on_serving() -> None:
    world = World(slices=HALVES)
    world.join_all()
    request = world.submit()
    member = world.core.cluster.membership.get("b")
    assert member is not None
    held = replace(register("b", world.members["b"]), holding=SliceRef(7, 3, 6))
    effects = world.handle(ev.NodeRegistered(held))
    assert [type(e) for e in effects] == [ev.PeersChanged]
    world.run()
    assert world.core.sessions() == {}
    assert world.streams[request].end is not None


def test_a_leaving_node_gets_nothing_new_and_goes_when_its_requests_are_done() -> None:
    world = World()
    world.join_all()
    requests = [world.submit((i,)) for i in range(4)]
    effects = world.handle(ev.NodeDraining(NodeId("a"), world.members["a"]))
    assert replies(effects, "a") == []
    later = world.submit((9,))
    route = world.core.sessions()[later].route
    assert route is not None
    assert "a" not in route.nodes
    world.run()
    assert [world.streams[r].end.reroutes for r in requests] == [0] * 4  # type: ignore[union-attr]
    effects = world.handle(ev.Tick())
    assert [type(m) for m in replies(effects, "a")] == [Leave]
    assert "a" not in world.core.cluster.membership


def test_a_leaving_node_without_requests_goes_at_once() -> None:
    world = World()
    world.join_all()
    effects = world.handle(ev.NodeDraining(NodeId("a"), world.members["a"]))
    assert [type(m) for m in replies(effects, "a")] == [Leave]


def test_requests_that_outstay_a_leaving_node_are_moved() -> None:
    world = World()
    world.join_all()
    requests = [world.submit((i,)) for i in range(4)]
    world.handle(ev.NodeDraining(NodeId("a"), world.members["a"]))
    world.pass_time(31)
    assert "a" not in world.core.cluster.membership
    assert all(
        "a" not in s.route.nodes for s in world.core.sessions().values() if s.route is not None
    )
    world.in_flight = [r for r in world.in_flight if "a" not in r.route.nodes]
    world.run()
    assert all(world.streams[r].end is not None for r in requests)


def test_a_spare_takes_the_slice_of_a_node_that_could_not_load() -> None:
    world = World(slices={"a": LayerRange(0, 6)}, placer=ProportionalPlacer(CONFIG, 1))
    first = world.join("a", ready=False)
    world.join("b", ready=False)
    spare = world.core.cluster.membership.get("b")
    assert spare is not None
    assert spare.state is NodeState.JOINED
    failure = AssignFailed(Epoch(7), "load_failed", "the disk is gone")
    effects = world.handle(ev.NodeAssignFailed(NodeId("a"), first, failure))
    notes = [e.text for e in effects if isinstance(e, ev.Note) and e.level == logging.ERROR]
    assert notes == ["could not load layers 0-5: the disk is gone"]
    (order,) = replies(effects, "b")
    assert isinstance(order, Assign)
    assert (order.first, order.end) == (0, 6)
    world.ready("b", order)
    assert world.core.cluster.serving


def test_a_placement_that_does_not_fit_is_the_reason_for_not_serving() -> None:
    world = World(slices={"a": LayerRange(0, 6)}, placer=ProportionalPlacer(CONFIG, 1))
    small = register("a", 1, memory=2000)
    effects = world.core.handle(ev.NodeRegistered(small))
    assert replies(effects, "a") == []
    why = world.core.cluster.why_not_serving()
    assert "add nodes or memory" in why
    world.core.handle(ev.NodeRegistered(register("b", 1, memory=1 << 20)))
    assert "add nodes or memory" not in world.core.cluster.why_not_serving()


def test_settings_that_leave_layers_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="layers 3-5"):
        World(slices={"a": LayerRange(0, 3)})
