"""Shaped links: times of arrival, the simulator's own included, and bytes through a real relay."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cluster.shaper import Shaper
from bench.cluster.ways import Nic, ShaperSpec, Way, WaySpec, machine_links
from bench.simulator.records import Recorder
from bench.simulator.timeline import Timeline
from bench.simulator.wires import Wires
from helix_mq.demo import free_ports
from helix_mq.ids import ROUTER, NodeId
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode


def problem_of(rate: float, latency_s: float, nic: float) -> Problem:
    nodes = tuple(
        ProblemNode(NodeId(name), "toy", "here", 1, (1.0,), (1.0,), nic, nic, 1) for name in "abc"
    )
    links = tuple(
        ProblemLink(NodeId(a), NodeId(b), rate, latency_s) for a in "abc" for b in "abc" if a != b
    )
    return Problem("toy", 1, 4, 1000, nodes, links)


@given(
    rate=st.floats(1e3, 1e9),
    nic=st.floats(1e3, 1e9),
    latency_s=st.floats(0, 1),
    frames=st.lists(
        st.tuples(st.floats(0, 0.5), st.sampled_from(["ab", "ac", "cb"]), st.integers(1, 10**6)),
        max_size=12,
    ),
)
def test_arrivals_are_the_simulators(
    rate: float, nic: float, latency_s: float, frames: list[tuple[float, str, int]]
) -> None:
    """Frames one at a time: what queues there is for the simulator's link queue to decide."""
    timeline = Timeline()
    wires = Wires(problem_of(rate, latency_s, nic), timeline, Recorder())
    nics = {name: Nic(1 / nic, 1 / nic) for name in "abc"}
    ways = {
        ends: Way(nics[ends[0]], nics[ends[1]], 1 / rate, latency_s) for ends in ("ab", "ac", "cb")
    }
    for wait_s, ends, size in frames:
        wire = wires.between(ends[0], ends[1])
        assert wire is not None
        at_s = timeline.now + wait_s
        timeline.run_until(at_s)
        arrived: list[float] = []

        def note(_: Any, arrived: list[float] = arrived) -> None:
            arrived.append(timeline.now)

        wires.send(wire, size, note, None)
        expected_s = ways[ends].put(at_s, size)
        timeline.run_until(max(expected_s, at_s) + 1.0)
        assert arrived == [pytest.approx(expected_s)]


def test_a_way_is_busy_for_all_who_use_it() -> None:
    way = Way(Nic(), Nic(), 1e-3, 0.5)
    assert way.put(10.0, 100) == pytest.approx(10.6)
    assert way.put(10.0, 100) == pytest.approx(10.7)
    assert way.put(20.0, 100) == pytest.approx(20.6)
    assert way.bytes_by_part == {1000: 200, 2000: 100}


def test_the_router_is_both_ends_of_a_problem_and_dead_links_are_none() -> None:
    problem = Problem(
        "toy",
        1,
        4,
        1000,
        (ProblemNode(NodeId("a"), "toy", "here", 1, (1.0,), (1.0,), 1.0, 1.0, 1),),
        (ProblemLink(SOURCE, NodeId("a"), 5.0, 0.1), ProblemLink(NodeId("a"), SINK, 0.0, 0.2)),
    )
    assert machine_links(problem) == {(ROUTER, "a"): (5.0, 0.1)}


def test_bytes_cross_both_ways_in_order_and_are_counted() -> None:
    """Through real sockets: nothing is lost or swapped, whatever the pieces; times are the pure
    part's."""
    import socket

    far = socket.create_server(("127.0.0.1", 0))
    (port,) = free_ports(1)
    there = WaySpec("a", "b", port, far.getsockname()[1], 4e6, 0.005)
    (other,) = free_ports(1)
    back = WaySpec("b", "a", other, 1, 1e9, 0.001)
    shaper = Shaper(ShaperSpec((there, back), {"a": (1e9, 1e9)}, ""))
    shaper.listen()
    running = threading.Thread(target=shaper.run)
    running.start()
    try:
        near = socket.create_connection(("127.0.0.1", port), timeout=240)
        near.settimeout(10)
        far.settimeout(10)
        peer, _ = far.accept()
        peer.settimeout(10)
        sent = bytes(i * 7 % 251 for i in range(300_000))
        sending = threading.Thread(target=near.sendall, args=(sent,))
        sending.start()
        got = bytearray()
        while len(got) < len(sent):
            got += peer.recv(1 << 16)
        sending.join()
        assert bytes(got) == sent
        peer.sendall(b"thanks")
        assert near.recv(64) == b"thanks"
        near.close()
        assert peer.recv(1) == b""
        peer.close()
    finally:
        shaper.stop()
        running.join()
        shaper.close()
        far.close()
    counted = {(w.source, w.target): sum(w.bytes_by_part.values()) for w in shaper.log().ways}
    assert counted == {("a", "b"): len(sent), ("b", "a"): len(b"thanks")}
