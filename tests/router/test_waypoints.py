"""The order of changes between placements: always covered, always there in the end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, uncovered
from router.waypoints import NoWay, Slices, loads, moved, waypoints

LAYERS = 6


def slices(**ranges: tuple[int, int]) -> Slices:
    return {NodeId(n): LayerRange(a, b) for n, (a, b) in ranges.items()}


def nobody(node: NodeId, layers: LayerRange) -> bool:
    return False


def all_of_them(node: NodeId, layers: LayerRange) -> bool:
    return True


def test_with_room_everywhere_all_change_at_once() -> None:
    now = slices(a=(0, 3), b=(3, 6))
    target = slices(a=(0, 2), b=(2, 6), c=(0, 6))
    assert waypoints(LAYERS, now, target, all_of_them) == [target]
    assert moved(now, target) == ["a", "b", "c"]


def test_nothing_to_do_is_no_way_at_all() -> None:
    now = slices(a=(0, 6))
    assert waypoints(LAYERS, now, now, nobody) == []


def test_a_node_without_room_leaves_and_comes_back_while_others_cover() -> None:
    now = slices(a=(0, 3), b=(0, 3), c=(3, 6))
    target = slices(a=(0, 3), b=(3, 6), c=(3, 6))
    way = waypoints(LAYERS, now, target, nobody)
    assert way == [slices(a=(0, 3), c=(3, 6)), target]
    assert loads(now, way) == [("b", LayerRange(3, 6))]


def test_a_spare_node_makes_room_for_those_that_cannot_hold_two() -> None:
    now = slices(a=(0, 3), b=(3, 6))
    target = slices(a=(0, 4), b=(4, 6), c=(0, 6))
    way = waypoints(LAYERS, now, target, nobody)
    assert way[0] == slices(a=(0, 3), b=(3, 6), c=(0, 6))
    assert way[-1] == target


def test_no_order_is_refused_with_the_layers_and_the_remedy() -> None:
    now = slices(a=(0, 3), b=(3, 6))
    target = slices(a=(0, 4), b=(4, 6))
    with pytest.raises(NoWay, match=r"a, b would have to change .* layers 0-2 would be on no node"):
        waypoints(LAYERS, now, target, nobody)


def test_what_does_not_serve_now_goes_straight_to_the_target() -> None:
    target = slices(a=(0, 4), b=(4, 6))
    assert waypoints(LAYERS, slices(a=(0, 3)), target, nobody) == [target]


RANGES = st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda r: r[0] < r[1])
PLACEMENTS = st.dictionaries(st.sampled_from("abcde"), RANGES, min_size=1).map(
    lambda ranges: slices(**ranges)
)


@st.composite
def covering(draw: st.DrawFn) -> Slices:
    """Nodes in some order hold adjoining pieces; the others hold anything or nothing."""
    cuts = sorted(draw(st.sets(st.integers(1, LAYERS - 1), max_size=3)))
    pieces = [LayerRange(a, b) for a, b in pairwise([0, *cuts, LAYERS])]
    order = [NodeId(n) for n in draw(st.permutations("abcde"))]
    return {**draw(PLACEMENTS), **dict(zip(order, pieces, strict=False))}


COVERING = covering()


@given(COVERING, COVERING, st.sets(st.sampled_from("abcde")))
def test_every_way_serves_all_along_and_no_node_does_what_it_cannot(
    now: Slices, target: Slices, roomy: set[str]
) -> None:
    try:
        way = waypoints(LAYERS, now, target, lambda node, layers: node in roomy)
    except NoWay as e:
        assert "would be on no node" in e.message
        return
    assert (way[-1] if way else now) == target
    for before, after in pairwise([now, *way]):
        assert before != after
        assert not uncovered(LAYERS, after.values())
        for node in moved(before, after):
            assert node in roomy or node not in before


@given(PLACEMENTS, COVERING)
def test_with_room_there_is_always_a_way(now: Slices, target: Slices) -> None:
    assert (waypoints(LAYERS, now, target, all_of_them) or [now])[-1] == target
