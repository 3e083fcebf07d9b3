"""Explanations say what is true: the cut caps the flow, one more node gives what is promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.explain import Explanation, explain
from solver.explain_what_if import parse_addition, what_if, with_twin
from solver.flow import CutKind, max_flow
from solver.problem import Problem, ProblemError
from solver.reference_json import ReferenceCluster
from solver.search import solve
from solver.search_types import NoPlacement, SolveOptions

MakeProblem = Callable[..., Problem]
Reference = Callable[[str], ReferenceCluster]


def planned(problem: Problem) -> tuple[Placement, Explanation]:
    result = solve(problem, SolveOptions(method="blocks", time_limit_s=0.5))
    return result.placement, explain(problem, result.placement, result.flow)


@pytest.mark.parametrize("seed", range(8))
def test_the_cut_caps_the_flow_and_is_named(make_problem: MakeProblem, seed: int) -> None:
    problem = make_problem(seed, nodes=6, layers=6, wide=seed % 2 == 0)
    try:
        _, told = planned(problem)
    except NoPlacement:
        return
    assert sum(e.capacity_tokens_per_s for e in told.cut) == pytest.approx(
        told.tokens_per_s, rel=1e-6
    )
    text = told.text()
    for edge in told.cut[:4]:
        if edge.kind is CutKind.ENGINE:
            assert edge.src in text
            assert problem.node(edge.src).type_name in text
    assert f"{told.tokens_per_s:,.0f} tokens/s" in text
    placed = {e.src for e in told.cut} & set(told.as_full)
    assert not placed


@pytest.mark.parametrize("seed", range(8))
def test_one_more_node_gives_what_is_promised(make_problem: MakeProblem, seed: int) -> None:
    problem = make_problem(seed, nodes=5, layers=6, wide=seed % 2 == 0)
    try:
        placement, told = planned(problem)
    except NoPlacement:
        return
    for tip in told.advice:
        like = min(
            (
                n
                for n in problem.nodes
                if (n.type_name, n.region) == (tip.type_name, tip.region) and n.max_layers
            ),
            key=lambda n: n.name,
        )
        wider = with_twin(problem, like)
        slices = {**placement.slices, wider.nodes[-1].name: tip.layers}
        flow = max_flow(wider, Placement(problem.num_layers, slices))
        assert flow.tokens_per_s == pytest.approx(tip.tokens_per_s, rel=1e-6)
        assert tip.tokens_per_s > told.tokens_per_s
    assert [t.tokens_per_s for t in told.advice] == sorted(
        (t.tokens_per_s for t in told.advice), reverse=True
    )


@pytest.mark.parametrize("seed", range(8))
def test_idle_nodes_are_idle_for_the_reason_given(make_problem: MakeProblem, seed: int) -> None:
    problem = make_problem(seed, nodes=7, layers=4)
    try:
        result = solve(problem, SolveOptions(method="petals", time_limit_s=5))
    except NoPlacement:
        return
    told = explain(problem, result.placement, result.flow)
    for node in problem.nodes:
        used = result.flow.node_flow.get(node.name, 0.0) > 1e-6
        reasons = [n.reason for n in told.idle if n.name == node.name]
        assert len(reasons) == (0 if used else 1)
        if reasons and "no room" in reasons[0]:
            assert node.max_layers == 0
        if reasons and "it would give" in reasons[0]:
            assert node.name not in result.placement.slices


def test_the_published_plan_is_explained(reference: Reference) -> None:
    cluster = reference("single24_llama70b")
    placement = cluster.published["helix"].placement
    flow = max_flow(cluster.problem, placement)
    told = explain(cluster.problem, placement, flow)
    assert "cap" in told.text()
    assert "1,290 tokens/s" in told.text()


def test_a_cut_plan_says_so(make_problem: MakeProblem) -> None:
    problem = make_problem(1, nodes=2, layers=2, wide=True)
    names = [n.name for n in problem.nodes]
    placement = Placement(2, {names[0]: LayerRange(0, 1), names[1]: LayerRange(1, 2)})
    apart = replace(problem, links=tuple(k for k in problem.links if k.src != names[0]))
    told = explain(apart, placement, max_flow(apart, placement))
    assert told.tokens_per_s == 0
    assert told.text()


def test_what_ifs_add_twins_and_take_nodes_away(make_problem: MakeProblem) -> None:
    problem = make_problem(3, nodes=3, layers=3)
    kind = problem.nodes[0].type_name
    wider = what_if(problem, add=[parse_addition(f"{kind}=2")], remove=[NodeId("n2")])
    assert [n.name for n in wider.nodes] == ["n0", "n1", f"new-{kind}-1", f"new-{kind}-2"]
    twin = wider.nodes[-1]
    assert (
        twin.tokens_per_s_by_layers == problem.node(twin_of(problem, kind)).tokens_per_s_by_layers
    )
    assert not [k for k in wider.links if "n2" in (k.src, k.dst)]
    with pytest.raises(ProblemError, match="no node is of type"):
        what_if(problem, add=[parse_addition("Z9")])
    with pytest.raises(ProblemError, match="is in region"):
        what_if(problem, add=[parse_addition(f"{kind}@mars")])


def twin_of(problem: Problem, kind: str) -> NodeId:
    return next(n.name for n in problem.nodes if n.type_name == kind)
