"""Timelines worked out by hand: every wait on links, cards and devices is where it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from bench.simulator.native import Simulation, Workload
from bench.simulator.records import Recorder
from bench.simulator.settings import Mode, NodeSettings, SimSettings
from bench.simulator.step_times import ChunkCost, StepTable, interpolated
from bench.simulator.timeline import Timeline
from bench.simulator.wires import Wires
from bench.traces.types import Arrival, Lengths
from helix_mq.ids import ROUTER
from helix_mq.layers import LayerRange
from helix_mq.token_return import TokenReturn
from nodes.batching import BatchLimits
from solver.objective import StepTimes

ONLINE = SimSettings(mode=Mode.ONLINE, warmup_s=0.0, duration_s=10.0, drain=True)
TIMES = StepTimes(
    prefill=((0.0, 0.0), (1000.0, 1.0)), decode=((0.0, 0.0), (1.0, 0.01), (101.0, 0.11))
)


def arriving(*requests: tuple[float, int, int]) -> Workload:
    return Workload([Arrival(at_s, Lengths(p, o)) for at_s, p, o in requests])


@pytest.mark.parametrize(("way", "second_s"), [("router", 0.051014), ("direct", 0.050012)])
def test_two_nodes_by_hand(
    make_cluster: Callable[..., Any], log: Any, way: TokenReturn, second_s: float
) -> None:
    """8 B to a: 8 us and 1 ms; a 10 ms (the floor); 4,000 B to b: 4 ms and 1 ms; b 10 ms; 2 B back
    and out again, 1.002 ms each way, or once straight to a; then the same with one row of 1,000 B.
    """
    cluster = make_cluster({"a": (0, 1), "b": (1, 2)})
    run = Simulation(*cluster, replace(ONLINE, core=replace(ONLINE.core, token_return=way)), log)
    result = run.run(arriving((0.0, 4, 2)))
    assert [at_s for _, at_s in log.token_log] == pytest.approx([0.02701, second_s], abs=1e-6)
    assert [(node, rows, tokens) for node, _, _, rows, tokens, _ in log.step_log] == [
        ("a", 0, 4),
        ("b", 0, 4),
        ("a", 1, 0),
        ("b", 1, 0),
    ]
    starts = [start_s for _, start_s, _, _, _, _ in log.step_log]
    earlier_s = 0.051014 - second_s
    decodes_s = [0.028012 - earlier_s, 0.040012 - earlier_s]
    assert starts == pytest.approx([0.001008, 0.016008, *decodes_s], abs=1e-6)
    assert (result.finished, result.tokens, result.rows, result.steps) == (1, 2, 4, 4)
    run.check()


def test_a_prompt_goes_in_chunks_with_decodes_between(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    cluster = make_cluster({"a": (0, 2)})
    settings = SimSettings(
        mode=Mode.ONLINE,
        warmup_s=0.0,
        duration_s=10.0,
        drain=True,
        node=NodeSettings(limits=BatchLimits(prefill_tokens=50), derive_budget=False),
    )
    Simulation(*cluster, settings, log).run(arriving((0.0, 10, 30), (0.1, 200, 1)))
    assert [tokens for _, _, _, _, tokens, _ in log.step_log if tokens > 10] == [50] * 4
    at_s = [at_s for request, at_s in log.token_log if request == "1"]
    # A decode comes back to find one chunk running at most, then shares its step with the next.
    assert max(b - a for a, b in pairwise(at_s)) < 0.1 + 0.12 + 0.003
    durations = {
        (rows, tokens): end_s - start_s for _, start_s, end_s, rows, tokens, _ in log.step_log
    }
    assert durations[1, 50] == pytest.approx(2 * (0.05 + 0.01))
    assert durations[1, 0] == pytest.approx(2 * 0.01)


def test_rows_of_a_batch_pay_only_for_layers_they_cross() -> None:
    table = StepTable(TIMES, BatchLimits(), ChunkCost())
    pieces = {LayerRange(0, 4): [0, 2], LayerRange(2, 6): [100, 1]}
    by_hand = 2 * 0.011 + 2 * (0.1 + 0.012) + 2 * (0.1 + 0.01)
    assert table.pieces_s(pieces) == pytest.approx(by_hand)


def test_a_chunk_is_never_cheaper_than_a_pass_over_the_weights() -> None:
    limits = BatchLimits(prefill_tokens=100)
    assert StepTable(TIMES, limits, ChunkCost()).prefill_s[3] == pytest.approx(0.01)
    assert StepTable(TIMES, limits, ChunkCost(floor=False)).prefill_s[3] == pytest.approx(0.003)
    shared = StepTable(TIMES, limits, ChunkCost(shared_weights=True))
    assert shared.layer_s(50, 1) == pytest.approx(0.05)
    assert shared.layer_s(50, 0) == pytest.approx(0.05)
    dear = StepTable(TIMES, limits, ChunkCost(per_chunk_s=0.002))
    assert dear.layer_s(50, 1) == pytest.approx(0.062)
    # Drafts make steps larger than prompts may.
    assert dear.layer_s(250, 1) == pytest.approx(0.262)
    assert dear.layer_s(0, limits.max_rows + 100) == pytest.approx(interpolated(TIMES.decode, 356))
    assert interpolated(TIMES.decode, 51) == pytest.approx(0.06)
    assert interpolated(TIMES.decode, 202) == pytest.approx(0.22)


class Deliveries:
    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.at_s: dict[str, float] = {}

    def take(self, name: str) -> None:
        self.at_s[name] = self._timeline.now


def test_links_and_cards_send_one_frame_at_a_time(make_cluster: Callable[..., Any]) -> None:
    problem, _, _ = make_cluster({"a": (0, 1), "b": (1, 2), "c": (1, 2)}, bytes_per_s=1e6)
    timeline = Timeline()
    wires = Wires(problem, timeline, Recorder(warmup_s=0.0, duration_s=10.0))
    got = Deliveries(timeline)
    for name, ends in {"1": ("a", "b"), "2": ("a", "b"), "3": ("a", "c")}.items():
        wire = wires.between(*ends)
        assert wire is not None
        wires.send(wire, 1_000_000, got.take, name)
    timeline.run_until(10.0)
    # The card passes 1 GB/s: the third frame waits there for the first. The second waits for its
    # link and comes to the card when that is free.
    assert got.at_s["1"] == pytest.approx(1.001)
    assert got.at_s["2"] == pytest.approx(2.001)
    assert got.at_s["3"] == pytest.approx(1.002)


def test_a_receivers_card_is_shared(make_cluster: Callable[..., Any]) -> None:
    problem, _, _ = make_cluster(
        {"a": (0, 1), "b": (0, 1), "c": (1, 2)}, bytes_per_s=1e9, latency_s=0.0
    )
    timeline = Timeline()
    wires = Wires(problem, timeline, Recorder(warmup_s=0.0, duration_s=10.0))
    got = Deliveries(timeline)
    for src in ("a", "b"):
        wire = wires.between(src, "c")
        assert wire is not None
        wires.send(wire, 500_000_000, got.take, src)
    timeline.run_until(10.0)
    assert got.at_s == {"a": pytest.approx(0.5), "b": pytest.approx(1.0)}


def test_a_cut_link_loses_what_is_on_it(make_cluster: Callable[..., Any]) -> None:
    problem, _, _ = make_cluster({"a": (0, 1)}, latency_s=1.0)
    timeline = Timeline()
    wires = Wires(problem, timeline, Recorder(warmup_s=0.0, duration_s=10.0))
    got = Deliveries(timeline)
    wire = wires.between(ROUTER, "a")
    assert wire is not None
    wires.send(wire, 1, got.take, "lost")
    wire.life += 1
    wires.send(wire, 1, got.take, "kept")
    timeline.run_until(10.0)
    assert list(got.at_s) == ["kept"]
