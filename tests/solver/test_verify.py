"""The verifier finds each kind of fault, and says it in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.flow import max_flow
from solver.problem import Problem
from solver.verify import VerificationError, require_valid, verify

MakeProblem = Callable[..., Problem]


@pytest.fixture(name="problem")
def wide_problem(make_problem: MakeProblem) -> Problem:
    """Four nodes on a fast network, each with room for at least two of four layers."""
    for seed in range(100):
        problem = make_problem(seed, nodes=4, layers=4, wide=True)
        if min(n.max_layers for n in problem.nodes) >= 2:
            return problem
    raise AssertionError("no such seed")


def halves(problem: Problem) -> Placement:
    names = [n.name for n in problem.nodes]
    where = {name: LayerRange(0, 2) if i % 2 else LayerRange(2, 4) for i, name in enumerate(names)}
    return Placement(4, where)


def test_a_true_plan_has_no_faults(problem: Problem) -> None:
    flow = max_flow(problem, halves(problem))
    report = verify(problem, halves(problem), claimed_tokens_per_s=flow.tokens_per_s, flow=flow)
    assert report.ok
    assert report.tokens_per_s == pytest.approx(flow.tokens_per_s)
    require_valid(report, "plan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n0": LayerRange(2, 3), "n2": LayerRange(2, 3)}, "no node holds layer 3"),
        ({"stranger": LayerRange(0, 1)}, "stranger holds layer 0, but the cluster has no such"),
    ],
)
def test_a_wrong_placement_is_told(
    problem: Problem, change: dict[str, LayerRange], words: str
) -> None:
    slices = {**halves(problem).slices, **{NodeId(k): v for k, v in change.items()}}
    report = verify(problem, Placement(4, slices))
    assert not report.ok
    assert any(words in fault for fault in report.faults), report.faults
    with pytest.raises(VerificationError, match="plan"):
        require_valid(report, "plan")


def test_too_many_layers_and_another_model_are_told(problem: Problem) -> None:
    tight = replace(problem, nodes=tuple(replace(node, max_layers=1) for node in problem.nodes))
    report = verify(tight, halves(problem))
    assert sum("has room for 1" in fault for fault in report.faults) == 4
    report = verify(problem, Placement(5, dict(halves(problem).slices)))
    assert any("for 5 layers, the model has 4" in fault for fault in report.faults)


def test_a_false_claim_is_told(problem: Problem) -> None:
    true = max_flow(problem, halves(problem)).tokens_per_s
    for claim in (true * 1.001, true * 0.999, 0.0, float("inf")):
        report = verify(problem, halves(problem), claimed_tokens_per_s=claim)
        assert len(report.faults) == 1
        assert "claims" in report.faults[0]


def test_a_tampered_flow_is_told(problem: Problem) -> None:
    placement = halves(problem)
    flow = max_flow(problem, placement)
    used = next(i for i, edge in enumerate(flow.edges) if edge.tokens_per_s > 0)

    def with_edge(tokens_per_s: float) -> tuple[str, ...]:
        edges = list(flow.edges)
        edges[used] = replace(edges[used], tokens_per_s=tokens_per_s)
        return verify(problem, placement, flow=replace(flow, edges=tuple(edges))).faults

    assert any(
        "passes on" in f or "sends" in f for f in with_edge(flow.edges[used].tokens_per_s / 2)
    )
    assert any("can carry" in f for f in with_edge(-1.0))
    assert any("can carry" in f for f in with_edge(1e12))
    stranger = replace(flow.edges[used], src=NodeId("n1"), dst=NodeId("n3"))
    faults = verify(problem, placement, flow=replace(flow, edges=(*flow.edges, stranger))).faults
    assert any("n1 -> n3" in fault for fault in faults)
