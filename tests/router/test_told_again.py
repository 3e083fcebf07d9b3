"""What a node was told is told again where the connection that carried it may have lost it."""

from __future__ import annotations

from msgspec.structs import replace

from helix_mq.layers import LayerRange
from helix_mq.messages.control import SliceRef
from router import events as ev
from tests.router.moving_world import Moving
from tests.router.world import register


def test_who_registers_again_while_it_loads_is_told_again_what_to_free() -> None:
    """Else it would keep what a router before this one had open there until its deadline."""
    world = Moving({"a": LayerRange(0, 3), "b": LayerRange(3, 6)})
    said = replace(register("a", 0), holding=SliceRef(3, 0, 3))
    world.join_as("a", said, load=False)
    world.pass_time(1)
    kept = world.retained.pop("a")
    # Its connection broke, and the order was in it.
    world.handle(ev.NodeRegistered(replace(said, incarnation=world.members["a"])))
    world.pass_time(1)
    assert world.retained["a"] == kept
