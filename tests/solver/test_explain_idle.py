"""Each reason why a node is idle, checked by what it says; the cut, by widening all else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.explain import explain
from solver.flow import CutKind, FlowSolution, can_follow, max_flow
from solver.problem import SINK, SOURCE, Problem

MakeProblem = Callable[..., Problem]
WIDER = 50.0


def placed_at_random(problem: Problem, seed: int) -> Placement:
    """Most nodes hold something somewhere, some nothing; layers may be left out."""
    rng = random.Random(seed)
    slices = {}
    for node in problem.nodes:
        size = rng.randint(0, node.max_layers)
        if size:
            first = rng.randint(0, problem.num_layers - size)
            slices[node.name] = LayerRange(first, first + size)
    return Placement(problem.num_layers, slices)


def neighbours(problem: Problem, placement: Placement, name: NodeId) -> tuple[bool, bool]:
    """Whether anybody could hand over to a node, and whether it could hand over to anybody."""
    held = placement.slices[name]
    before = after = False
    for link in problem.links:
        if link.bytes_per_s <= 0:
            continue
        if link.dst == name and link.src == SOURCE:
            before = before or held.first == 0
        elif link.src == name and link.dst == SINK:
            after = after or held.end == problem.num_layers
        elif link.dst == name and link.src in placement.slices:
            before = before or can_follow(placement.slices[link.src], held, True)
        elif link.src == name and link.dst in placement.slices:
            after = after or can_follow(held, placement.slices[link.dst], True)
    return before, after


def flow_with(
    problem: Problem, placement: Placement, name: NodeId, layers: LayerRange | None
) -> float:
    slices = {n: held for n, held in placement.slices.items() if n != name}
    if layers is not None:
        slices[name] = layers
    return max_flow(problem, Placement(problem.num_layers, slices)).tokens_per_s


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), wide=st.booleans())
def test_every_idle_node_is_idle_for_the_reason_given(
    make_problem: MakeProblem, seed: int, wide: bool
) -> None:
    problem = make_problem(seed, nodes=6, layers=4, wide=wide)
    placement = placed_at_random(problem, seed)
    flow = max_flow(problem, placement)
    told = explain(problem, placement, flow)
    for idle in told.idle:
        held = placement.slices.get(idle.name)
        if "the plan left it out, though on" in idle.reason:
            assert held is None
            gains = [
                flow_with(problem, placement, idle.name, layers)
                for size in range(1, problem.node(idle.name).max_layers + 1)
                for first in range(problem.num_layers - size + 1)
                if (layers := LayerRange(first, first + size))
                and f"though on {layers} it would" in idle.reason
            ]
            assert len(gains) == 1
            assert gains[0] > flow.tokens_per_s
            assert idle.reason.endswith(f"would give {gains[0]:,.0f} tokens/s")
        elif "nowhere near the bottleneck" in idle.reason:
            assert held is None
            for size in range(1, problem.node(idle.name).max_layers + 1):
                for first in range(problem.num_layers - size + 1):
                    layers = LayerRange(first, first + size)
                    if layers.end < told.layers.first or layers.first > told.layers.end:
                        continue
                    after = flow_with(problem, placement, idle.name, layers)
                    assert after <= flow.tokens_per_s * (1 + 1e-5)
        elif "no node that could hand over to it" in idle.reason:
            assert not neighbours(problem, placement, idle.name)[0]
        elif "has no link to a node that could go on" in idle.reason:
            assert not neighbours(problem, placement, idle.name)[1]
        elif "others already carry all the flow" in idle.reason:
            without = flow_with(problem, placement, idle.name, None)
            assert without == pytest.approx(flow.tokens_per_s, rel=1e-9, abs=1e-9)
            assert flow.tokens_per_s > 0, "nobody carries anything"
        elif "nothing flows" in idle.reason:
            assert flow.tokens_per_s == 0
        else:
            assert "no link leads to it" in idle.reason or "no room" in idle.reason


def all_but_the_cut_widened(problem: Problem, placement: Placement, flow: FlowSolution) -> Problem:
    """Engines, NICs and links far wider, except those of the cut (and NICs behind its links)."""
    engines = {e.src for e in flow.min_cut if e.kind is CutKind.ENGINE}
    links = {(e.src, e.dst) for e in flow.min_cut if e.kind is CutKind.LINK}
    into = {e.src for e in flow.min_cut if e.kind is CutKind.NIC_IN}
    into |= {dst for src, dst in links if src == SOURCE}
    out = {e.src for e in flow.min_cut if e.kind is CutKind.NIC_OUT}
    out |= {src for src, dst in links if dst == SINK}
    nodes = tuple(
        replace(
            node,
            tokens_per_s_by_layers=tuple(
                rate * (1.0 if node.name in engines else WIDER)
                for rate in node.tokens_per_s_by_layers
            ),
            nic_in_bytes_per_s=node.nic_in_bytes_per_s * (1.0 if node.name in into else WIDER),
            nic_out_bytes_per_s=node.nic_out_bytes_per_s * (1.0 if node.name in out else WIDER),
        )
        for node in problem.nodes
    )
    wider = tuple(
        k if (k.src, k.dst) in links else replace(k, bytes_per_s=k.bytes_per_s * WIDER)
        for k in problem.links
    )
    return replace(problem, nodes=nodes, links=wider)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), wide=st.booleans())
def test_nothing_but_the_cut_limits_the_flow(
    make_problem: MakeProblem, seed: int, wide: bool
) -> None:
    problem = make_problem(seed, nodes=6, layers=4, wide=wide)
    placement = placed_at_random(problem, seed)
    flow = max_flow(problem, placement)
    wider = all_but_the_cut_widened(problem, placement, flow)
    assert max_flow(wider, placement).tokens_per_s == pytest.approx(
        flow.tokens_per_s, rel=1e-9, abs=1e-6
    )
