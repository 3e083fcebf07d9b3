"""The max flow: published figures, NICs, the cut that proves it, the same in every process."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.flow import CutKind, max_flow
from solver.problem import SINK, SOURCE, Problem, ProblemError, ProblemLink, ProblemNode
from solver.reference_json import ReferenceCluster
from solver.search_index import ProblemIndex
from solver.search_judge import Judge
from solver.verify import verify

A, B = NodeId("a"), NodeId("b")


def two_nodes(**changes: float) -> Problem:
    """a then b, 4 layers; a computes 40 tokens/s with two layers, b 30."""

    def node(name: NodeId, rate: float) -> ProblemNode:
        return ProblemNode(
            name,
            "t",
            "",
            4,
            tuple(rate * 2 / k for k in range(1, 5)),
            (),
            changes.get("nic_in", 1e6),
            changes.get("nic_out", 1e6),
            1,
        )

    links = (
        ProblemLink(SOURCE, A, changes.get("source", 1e6), 0.0),
        ProblemLink(A, B, changes.get("link", 1e6), 0.0),
        ProblemLink(B, SINK, 1e6, 0.0),
    )
    return Problem("two", 4, 2, 100, (node(A, 40.0), node(B, 30.0)), links)


HALVES = Placement(4, {A: LayerRange(0, 2), B: LayerRange(2, 4)})


@pytest.mark.parametrize(
    ("changes", "tokens_per_s", "kind"),
    [
        ({}, 30.0, CutKind.ENGINE),
        ({"link": 1_000.0}, 10.0, CutKind.LINK),
        ({"nic_out": 1_200.0}, 12.0, CutKind.NIC_OUT),
        ({"nic_in": 1_300.0}, 13.0, CutKind.NIC_IN),
        ({"source": 8.0}, 4.0, CutKind.LINK),
        ({"nic_in": 20.0}, 0.2, CutKind.NIC_IN),
    ],
)
def test_the_slowest_part_is_the_flow_and_the_cut(
    changes: dict[str, float], tokens_per_s: float, kind: CutKind
) -> None:
    flow = max_flow(two_nodes(**changes), HALVES)
    assert flow.tokens_per_s == pytest.approx(tokens_per_s, rel=1e-9)
    assert [edge.kind for edge in flow.min_cut] == [kind]


def test_partial_inference_lets_a_request_enter_a_slice_in_its_middle() -> None:
    overlap = Placement(4, {A: LayerRange(0, 3), B: LayerRange(1, 4)})
    problem = two_nodes()
    assert max_flow(problem, overlap).tokens_per_s == pytest.approx(20.0)
    assert max_flow(problem, overlap, partial_inference=False).tokens_per_s == 0.0


def test_a_slice_beyond_the_table_is_refused_in_words() -> None:
    problem = two_nodes()
    small = replace(
        problem,
        nodes=tuple(replace(n, max_layers=1, tokens_per_s_by_layers=(9.0,)) for n in problem.nodes),
    )
    with pytest.raises(ProblemError, match=r"node a holds layers 0-1.*ends at 1"):
        max_flow(small, HALVES)


def published(directory: Path) -> list[dict[str, str]]:
    """Rows of the summary with a flow, whose cluster is among the files."""
    with (directory / "placements_summary.csv").open(encoding="utf-8") as file:
        return [
            row
            for row in csv.DictReader(file)
            if row["maxflow_reference_simulator"]
            and (directory / "clusters" / f"{row['setup']}.json").is_file()
        ]


def test_published_placements_have_their_published_flow(
    reference: Callable[[str], ReferenceCluster], reference_dir: Path
) -> None:
    rows = published(reference_dir)
    assert len(rows) >= 25
    for row in rows:
        cluster = reference(row["setup"])
        entry = cluster.published[row["placement"]]
        problem = cluster.problem
        if entry.links is not None:
            own = entry.links
            problem = replace(
                problem, links=tuple(k for k in problem.links if (k.src, k.dst) in own)
            )
        flow = max_flow(problem, entry.placement).tokens_per_s
        expected = float(row["maxflow_reference_simulator"])
        assert flow == pytest.approx(expected, rel=1e-9), row
        everywhere = max_flow(cluster.problem, entry.placement, partial_inference=False)
        without = float(row["milpcap_all_nopartial"])
        assert everywhere.tokens_per_s == pytest.approx(without, rel=2e-4), row


def test_the_same_flow_in_every_process(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = (
        "import itertools\n"
        "from helix_mq.layers import LayerRange, Placement\n"
        "from solver.flow import max_flow\n"
        "from solver.problem import *\n"
        "names = [f'n{i}' for i in range(12)]\n"
        "nodes = tuple(ProblemNode(n, 't', '', 4, (9.0, 5.0, 3.0, 2.0), (), 1e6, 1e6, 1)"
        " for n in names)\n"
        "links = tuple(ProblemLink(a, b, 450.0, 0.0) for a, b in"
        " itertools.permutations([SOURCE, *names, SINK], 2)"
        " if a != SINK and b != SOURCE and (a, b) != (SOURCE, SINK))\n"
        "p = Problem('p', 6, 2, 100, nodes, links)\n"
        "where = {n: LayerRange(i % 3 * 2, i % 3 * 2 + 2) for i, n in enumerate(names)}\n"
        "flow = max_flow(p, Placement(6, where))\n"
        "print([(e.src, e.dst, e.tokens_per_s) for e in flow.edges], flow.min_cut)\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    partial=st.booleans(),
    wide=st.booleans(),
    picks=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)), min_size=6, max_size=6),
)
def test_flow_cut_judge_and_verifier_agree(
    make_problem: Callable[..., Problem],
    seed: int,
    partial: bool,
    wide: bool,
    picks: list[tuple[int, int]],
) -> None:
    problem = make_problem(seed, nodes=6, layers=8, wide=wide)
    slices = {}
    for node, (first, size) in zip(problem.nodes, picks, strict=True):
        held = min(size, node.max_layers, problem.num_layers - first)
        slices[node.name] = LayerRange(first, first + held)
    placement = Placement(problem.num_layers, slices)
    flow = max_flow(problem, placement, partial_inference=partial)
    cut = math.fsum(edge.capacity_tokens_per_s for edge in flow.min_cut)
    assert flow.tokens_per_s == pytest.approx(cut, rel=1e-12)
    index = ProblemIndex(problem)
    judged = Judge(index, partial_inference=partial).tokens_per_s(*index.arrays(placement))
    assert judged == pytest.approx(flow.tokens_per_s, rel=1e-6, abs=1e-6)
    report = verify(
        problem,
        placement,
        claimed_tokens_per_s=flow.tokens_per_s,
        flow=flow,
        partial_inference=partial,
    )
    if not placement.missing():
        assert report.ok, report.faults
