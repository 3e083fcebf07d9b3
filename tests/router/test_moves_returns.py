"""Nodes that come back while another placement is being made are told again what they are to do."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import AssignFailed, SliceRef
from router import events as ev
from router.relocation import RelocationSettings
from tests.router.moving_world import MEMORY, TIMES, Moving
from tests.router.world import register

ALL, LOW, HIGH = LayerRange(0, 6), LayerRange(0, 3), LayerRange(3, 6)
NOW = {"a": LOW, "b": HIGH}
TARGET = {"a": LOW, "b": HIGH, "c": ALL}


def with_a_joiner() -> Moving:
    """a and b serve; c, which has joined since, is to be given all layers beside them."""
    world = Moving(NOW)
    for node in "abc":
        world.join_measured(node)
    assert world.place(TARGET) is None
    world.handle(ev.Tick())
    world.loading.sort(key=lambda told: told[0] != "c")
    assert [n for n, _ in world.loading] == ["c", "a", "b"]
    return world


def connect_again(world: Moving, node: str, holding: SliceRef | None) -> None:
    """The same process: what was under way in its connection is lost."""
    said = register(node, world.members[node], memory=MEMORY)
    world.handle(ev.NodeRegistered(replace(said, times=TIMES, holding=holding)))


def test_a_joiner_whose_order_was_lost_with_its_connection_is_told_again() -> None:
    world = with_a_joiner()
    _, order = world.loading.pop(0)
    world.load_all()
    assert world.core.cluster.moves.busy
    connect_again(world, "c", None)
    assert world.loading == [("c", order)]
    world.handle(ev.Tick())
    assert world.retained["c"] == (order.epoch,)
    world.load_all()
    assert world.placed == TARGET


def test_a_joiner_that_has_loaded_is_not_told_again() -> None:
    world = with_a_joiner()
    _, order = world.loading[0]
    world.load(0)
    connect_again(world, "c", SliceRef(order.epoch, order.first, order.end))
    assert [n for n, _ in world.loading] == ["a", "b"]
    world.load_all()
    assert world.placed == TARGET


def test_a_joiner_that_has_lost_what_it_loaded_is_waited_for() -> None:
    world = with_a_joiner()
    _, order = world.loading[0]
    world.load(0)
    connect_again(world, "c", None)
    assert world.loading.pop() == ("c", order)
    world.load_all()
    assert "c" not in world.placed
    connect_again(world, "c", None)
    world.load_all()
    assert world.placed == TARGET


@pytest.mark.parametrize("why", ["too late", "could not load"])
def test_who_waited_for_a_placement_that_is_given_up_has_its_place(why: str) -> None:
    """a dies and comes back meanwhile: it is not waited for, and waits itself."""
    world = with_a_joiner()
    epoch = world.loading[0][1].epoch
    world.lose("a")
    world.join_measured("a", load=False)
    world.loading = []
    if why == "too late":
        world.pass_time(RelocationSettings().load_s - 60)
        assert world.loading == []
        assert "a" not in world.placed
        world.pass_time(120)
    else:
        failure = AssignFailed(epoch, "load_failed", "a file is missing")
        world.handle(ev.NodeAssignFailed(NodeId("c"), world.members["c"], failure))
    assert not world.core.cluster.moves.busy
    world.load_all()
    assert world.placed == NOW
    assert world.core.cluster.serving
