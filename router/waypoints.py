"""From one placement to another without uncovering a layer: the order in which nodes change. Pure.

A node with room for both slices loads the new one beside the old. One without has to free the old
slice first: it leaves, while the others cover the model, and comes back with the new one. Each
waypoint is a placement that serves; the last one is the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from helix_mq.errors import CapacityError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, describe_ranges, uncovered

Slices = Mapping[NodeId, LayerRange]

RoomBeside = Callable[[NodeId, LayerRange], bool]
"""Whether a node can load a slice beside all it holds now."""


class NoWay(CapacityError):
    """Every order of changes would leave layers on no node for a while."""

    code = "no_way"
    http_status = 409


def waypoints(num_layers: int, now: Slices, target: Slices, room: RoomBeside) -> list[Slices]:
    """Placements from `now` (left out) to `target`; empty if nothing changes.

    Every one covers the model if `now` does; if it does not, there is nothing to keep up and the
    target is the only one. Between two of them a node keeps its slice, loads one beside it, loads
    one while it holds nothing, or leaves. Raises NoWay in words.
    """
    if dict(now) == dict(target):
        return []
    if uncovered(num_layers, now.values()):
        return [dict(target)]
    at = dict(now)
    way: list[Slices] = []
    due = {n: layers for n, layers in target.items() if at.get(n) != layers}
    while due:
        step = _beside(num_layers, at, due, target, room) or _in_turn(num_layers, at, due)
        if not step:
            raise NoWay(_why(num_layers, at, due))
        way += step
        at = dict(step[-1])
        due = {n: layers for n, layers in due.items() if at.get(n) != layers}
    if at != dict(target):
        way.append(dict(target))
    return way


def moved(before: Slices, after: Slices) -> list[NodeId]:
    """Nodes that load something on the way from one placement to the next."""
    return sorted(n for n, layers in after.items() if before.get(n) != layers)


def loads(now: Slices, way: list[Slices]) -> list[tuple[NodeId, LayerRange]]:
    """Every slice that is loaded along a way."""
    return [(n, after[n]) for before, after in pairwise([now, *way]) for n in moved(before, after)]


def _beside(
    num_layers: int, at: Slices, due: Slices, target: Slices, room: RoomBeside
) -> list[Slices]:
    """As many as can change at once: all with room, or as many of them as keep the model covered.

    Nodes that hold nothing have room if the slice fits them at all, which the target has seen to.
    """
    able = {n: layers for n, layers in due.items() if n not in at or room(n, layers)}
    if not able:
        return []
    if len(able) == len(due):
        # Nobody is left behind, and the target covers the model.
        return [dict(target)]
    together = {**at, **able}
    if not uncovered(num_layers, together.values()):
        return [together]
    for node in sorted(able):
        alone = {**at, node: able[node]}
        if not uncovered(num_layers, alone.values()):
            return [alone]
    return []


def _in_turn(num_layers: int, at: Slices, due: Slices) -> list[Slices]:
    """One node frees its slice and loads the new one, while the others cover the model."""
    for node in sorted(due, key=lambda n: (len(due[n]), n)):
        without = {n: layers for n, layers in at.items() if n != node}
        if not uncovered(num_layers, without.values()):
            return [without, {**without, node: due[node]}]
    return []


def _why(num_layers: int, at: Slices, due: Slices) -> str:
    node = min(due)
    alone = uncovered(num_layers, (layers for n, layers in at.items() if n != node))
    return (
        f"{', '.join(sorted(due))} would have to change and cannot hold old and new layers at "
        f"once; while {node} changes, {describe_ranges(alone)} would be on no node: give these "
        "nodes more memory, or add one"
    )
