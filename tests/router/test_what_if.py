"""What one more GPU would bring: whose speed and links it is given, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import Ready, StepTimes
from router.live_problem import LinkSpeed
from router.membership import Member, NodeState
from router.searches import NothingFound
from router.what_if import (
    CannotSay,
    Gain,
    UnknownGpu,
    UnknownRegion,
    newcomer,
    question,
    work_out,
)
from tests.router.world import CONFIG, register

TIMES = StepTimes(((1.0, 1e-3), (256.0, 1e-2)), ((1.0, 1e-3), (64.0, 2e-3)))
ROOMY = 1 << 24


def member(name: str, first: int, end: int, region: str = "", device: str = "cpu") -> Member:
    said = msgspec.structs.replace(
        register(name, 1, memory=ROOMY), region=region, device=device, times=TIMES
    )
    ready = Ready(1, first, end, 100, 16, 1.0, 1e4, "")
    return Member(said, 0.0, NodeState.READY, LayerRange(first, end), ready=ready)


def no_link(source: NodeId, target: NodeId) -> LinkSpeed | None:
    return None


HALVES = (member("a", 0, 3, "eu"), member("b", 3, 6, "eu"), member("c", 3, 6, "us"))


def test_a_second_node_beside_the_only_one_lifts_the_flow() -> None:
    new = newcomer(CONFIG, HALVES, "T4", "eu")
    asked = question(CONFIG, HALVES, {}, no_link, new, 1.0)
    gain = work_out(asked)
    assert isinstance(gain, Gain)
    # Layers 0-2 are on one of three equal nodes; the T4 by datasheet is far faster than these.
    assert gain.layers is not None
    assert gain.layers.first == 0
    assert gain.now_tokens_per_s * 1.5 < gain.added_tokens_per_s
    assert gain.added_tokens_per_s <= gain.replanned_tokens_per_s


def test_measurements_of_a_like_member_come_before_the_datasheet() -> None:
    fitted = (*HALVES, member("d", 0, 6, "us", "cuda:0 Tesla T4"))
    assert newcomer(CONFIG, fitted, "T4", "eu").measured_on == "d"
    assert newcomer(CONFIG, fitted, "T4", "eu").machine.times.decode == TIMES.decode
    assert newcomer(CONFIG, fitted, "L4", "eu").measured_on == ""


def test_it_is_linked_as_its_neighbours_are() -> None:
    ocean, hall = LinkSpeed(1e7, 0.04), LinkSpeed(1e9, 0.001)

    def links(source: NodeId, target: NodeId) -> LinkSpeed | None:
        if source == target:
            return None
        return ocean if "c" in (source, target) else hall

    for region, there in (("us", ocean), ("eu", hall)):
        new = newcomer(CONFIG, HALVES, "T4", region)
        asked = question(CONFIG, HALVES, {}, links, new, 1.0)
        found = {(k.src, k.dst): k.bytes_per_s for k in asked.problem.links}
        assert found[asked.new, NodeId("a")] == there.bytes_per_s
        assert found[NodeId("a"), asked.new] == there.bytes_per_s
        assert [n.region for n in asked.problem.nodes if n.name == asked.new] == [region]
    assert ROUTER not in {n.name for n in asked.problem.nodes}


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(UnknownGpu, match="H100"):
        newcomer(CONFIG, HALVES, "H1000", "eu")
    with pytest.raises(UnknownRegion, match="regions: eu, us"):
        newcomer(CONFIG, HALVES, "H100", "mars")
    unnamed = (member("a", 0, 3), member("b", 3, 6))
    with pytest.raises(UnknownRegion, match="leave `region` out: no node names one"):
        newcomer(CONFIG, unnamed, "H100", "mars")
    with pytest.raises(UnknownRegion, match="regions: eu, us, or leave `region` out"):
        newcomer(CONFIG, (*unnamed, *HALVES), "H100", "mars")
    with pytest.raises(UnknownRegion, match="no node is here"):
        newcomer(CONFIG, (), "H100", "mars")
    new = newcomer(CONFIG, HALVES, "H100", "eu")
    with pytest.raises(CannotSay, match="not all served"):
        question(CONFIG, HALVES[1:], {}, no_link, new, 1.0)
    mute = replace(HALVES[2], register=msgspec.structs.replace(HALVES[2].register, times=None))
    with pytest.raises(CannotSay, match=r"speed of c is not known.*at_start"):
        question(CONFIG, (*HALVES[:2], mute), {}, no_link, new, 1.0)
    # More layers than its memory holds, by the planner's sums: an answer, no exception.
    small = replace(
        HALVES[0], register=msgspec.structs.replace(HALVES[0].register, memory_bytes=1000)
    )
    asked = question(CONFIG, (small, *HALVES[1:]), {}, no_link, new, 1.0)
    assert isinstance(work_out(asked), NothingFound)
