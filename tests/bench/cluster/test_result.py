"""What happened live becomes the simulator's figures; what does not count is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cluster.load import Asked
from bench.cluster.paced import NodeLog, StepLog
from bench.cluster.plot import plot_pairs
from bench.cluster.replay import replay
from bench.cluster.result import Pair, table
from bench.cluster.run import Live, NodePace, overhead_of
from bench.cluster.ways import ShaperLog, WayLog
from bench.simulator.records import Recorder
from bench.simulator.stats import Report, report
from bench.traces.types import Lengths

GOOD = NodePace("a", 100, 0.0, 1.01, 0.2, 0.0008)


def live_report(tokens: int = 6) -> Report:
    """One request on one node, from second 100 of the machine's clock on."""
    asked = Asked(Lengths(20, tokens), 100.5, [101.0 + i * 0.5 for i in range(tokens)])
    asked.ended_s, asked.ok, asked.reason = asked.tokens_s[-1], True, "length"
    running = Asked(Lengths(30, 5), 102.0)
    steps = (
        StepLog(99.0, 99.9, 0.9, 0.1, 1, 0, 2),
        StepLog(100.6, 100.9, 0.3, 0.1, 0, 20, 2),
        StepLog(101.1, 101.3, 0.2, 0.1, 1, 0, 2),
    )
    shaper = ShaperLog((WayLog("a", "b", 1000.0, {9998: 500, 10100: 200, 10101: 50}),), 0.0, 0.0)
    recorder = Recorder(0.0, 10.0)
    replay(recorder, [asked, running], [NodeLog("a", steps)], shaper, 100.0)
    return report(recorder)


def pair_of(pace: NodePace, simulated: Report, **failures: int) -> Pair:
    live = Live(live_report(), (pace,), 0.0, {}, 0.5, dict(failures))
    return Pair("maxflow", live, simulated, simulated, 0.001)


def test_a_live_run_is_told_as_a_simulated_one() -> None:
    found = live_report()
    assert (found.finished, found.failed, found.unfinished) == (1, 0, 1)
    assert found.ttft.mean == pytest.approx(0.5)
    assert found.tpot.mean == pytest.approx(0.5)
    assert found.e2e.mean == pytest.approx(3.0)
    assert found.decode_tokens_per_s == pytest.approx(0.5)
    assert found.prompt_tokens_per_s == pytest.approx(2.0)
    (node,) = found.nodes
    # What was before the first request is not of this run.
    assert node.steps == 2
    assert node.utilisation == pytest.approx(0.05)
    (link,) = found.links
    assert (link.bytes_per_s, link.utilisation) == pytest.approx((25.0, 0.025))


def test_the_difference_is_of_decode_throughput() -> None:
    pair = pair_of(GOOD, live_report(tokens=11))
    assert pair.difference == pytest.approx(-0.5)
    assert pair.faults() == []
    body = json.loads(json.dumps(pair.as_dict()))
    assert body["decode_difference"] == pytest.approx(-0.5)
    assert body["live"]["decode_tokens_per_s"] == pytest.approx(0.5)
    assert body["overhead_s"] == 0.001
    row = json.loads(json.dumps(pair.row()))
    assert row["counts"]
    assert row["simulated"]["decode_tokens_per_s"] == pytest.approx(1.0)
    assert row["live"]["tpot_s"] == pytest.approx(0.5)


def test_what_makes_a_run_invalid_is_said() -> None:
    simulated = live_report()
    overran = pair_of(replace(GOOD, overran_share=0.3), simulated)
    assert "30% of its steps" in overran.faults()[0]
    longer = pair_of(replace(GOOD, longer=1.2), simulated)
    assert "1.20 times" in longer.faults()[0]
    failed = pair_of(GOOD, simulated, no_peer=2)
    assert "no_peer" in failed.faults()[0]
    text = table([overran, pair_of(GOOD, simulated)])
    assert "maxflow does not count: a: 30%" in text
    assert text.count("does not count") == 1
    assert "with 1 ms a step" in text


def test_the_overhead_is_of_the_nodes_that_worked() -> None:
    idle = replace(GOOD, gap_s=0.0)
    assert overhead_of([idle, GOOD, replace(GOOD, gap_s=0.002), idle]) == pytest.approx(0.0014)
    assert overhead_of([idle]) == 0.0


def test_a_comparison_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_pairs([pair_of(GOOD, live_report())], tmp_path / "pair.svg", "one of each")
    text = (tmp_path / "pair.svg").read_text()
    assert "decode tokens/s" in text
    assert "one of each" in text
