"""Blocks pass the flow they were made for; chains of them come near what is possible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.flow import max_flow
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.reference_json import ReferenceCluster
from solver.search_blocks import Block, BlockPricer, Kind, flat_blocks
from solver.search_cover import Columns, Crossing, Pool, choose, make_columns
from solver.search_types import Budget

kinds_strategy = st.lists(
    st.tuples(
        st.lists(st.floats(1.0, 100.0), min_size=1, max_size=5).map(tuple), st.integers(1, 6)
    ),
    min_size=1,
    max_size=3,
).map(lambda pairs: [Kind(rates, count) for rates, count in pairs])


def passes(block: Block, kinds: list[Kind], partial: bool) -> float:
    """The max flow through a block, as a model of its width on a network without limits."""
    names = [NodeId(f"n{i}") for i in range(len(block.slices))]
    nodes = tuple(
        ProblemNode(name, "", "", len(kinds[p.kind].rates), kinds[p.kind].rates, (), 1e9, 1e9, 1)
        for name, p in zip(names, block.slices, strict=True)
    )
    ends = [SOURCE, *names, SINK]
    links = tuple(
        ProblemLink(a, b, 1e9, 0.0)
        for a in ends
        for b in ends
        if a not in (b, SINK) and b != SOURCE and (a, b) != (SOURCE, SINK)
    )
    problem = Problem("block", block.width, 1, 1, nodes, links)
    slices = {n: LayerRange(p.first, p.end) for n, p in zip(names, block.slices, strict=True)}
    placement = Placement(block.width, slices)
    return max_flow(problem, placement, partial_inference=partial).tokens_per_s


@settings(max_examples=60, deadline=None)
@given(kinds=kinds_strategy, share=st.floats(0.05, 3.0), prices=st.randoms(use_true_random=False))
def test_priced_blocks_pass_their_flow_and_cost_what_they_say(
    kinds: list[Kind], share: float, prices: object
) -> None:
    flow = share * max(max(k.rates) for k in kinds)
    price = np.array([prices.uniform(0.1, 1.0) for _ in kinds])  # type: ignore[attr-defined]
    pricer = BlockPricer(kinds, flow, max(len(k.rates) for k in kinds))
    for cost, block in pricer.cheapest(price):
        uses = block.uses(len(kinds))
        assert float(price @ np.array(uses)) == pytest.approx(cost)
        if sum(uses) <= 12:
            for partial in (True, False):
                assert passes(block, kinds, partial) >= flow * (1 - 1e-6)


@settings(max_examples=60, deadline=None)
@given(kinds=kinds_strategy, share=st.floats(0.2, 4.0))
def test_flat_blocks_pass_their_flow_without_a_node_to_spare(
    kinds: list[Kind], share: float
) -> None:
    flow = share * max(max(k.rates) for k in kinds)
    for block in flat_blocks(kinds, flow, 40):
        rates = [kinds[p.kind].rates[block.width - 1] for p in block.slices]
        assert sum(rates) >= flow * (1 - 1e-6)
        assert sum(rates) - min(rates) < flow
        assert all(u <= k.count for u, k in zip(block.uses(len(kinds)), kinds, strict=True))


def test_a_nested_block_is_found_where_flat_ones_waste() -> None:
    """A node of 6 over two layers beside two of 4 on one each carries 10 with three nodes."""
    kinds = [Kind((7.0, 6.0), 1), Kind((4.0, 1.0), 2)]
    columns = make_columns(Pool(tuple(kinds)), 10.0, 2, Budget(10))
    chosen = choose([Pool(tuple(kinds))], [columns], [], 2, Budget(10))
    assert chosen is not None
    assert [passes(block, kinds, False) for block in chosen[0]] == [pytest.approx(10.0)]


def test_crossings_ask_for_enough_nodes_on_both_sides() -> None:
    """One node ends before the crossing, so two must begin after it; and the other way round."""
    single = Columns((Block(1, tuple(flat_blocks([Kind((10.0,), 9)], 10.0, 9)[0].slices)),), 9.0)
    kinds = [Kind((10.0,), 9), Kind((6.0,), 9)]
    mixed = make_columns(Pool(tuple(kinds)), 10.0, 4, Budget(10))
    pools = [Pool((Kind((10.0,), 9),)), Pool(tuple(kinds))]
    chosen = choose(pools, [single, mixed], [Crossing(((1, 2), (2, 1)))], 4, Budget(10))
    assert chosen is not None
    assert chosen[1][0].left >= 2
    assert sum(block.width for part in chosen for block in part) == 4
    assert choose(pools, [single, single], [Crossing(((1, 2), (2, 1)))], 4, Budget(10)) is None


def test_pools_too_small_for_the_model_are_refused_at_once() -> None:
    pool = Pool((Kind((5.0, 4.0), 2),))
    columns = make_columns(pool, 4.0, 9, Budget(10))
    assert columns.most_layers == pytest.approx(4.0)
    assert choose([pool], [columns], [], 5, Budget(10)) is None


def test_uniform_clusters_are_planned_in_a_second(
    reference: Callable[[str], ReferenceCluster],
) -> None:
    from solver.search import solve
    from solver.search_types import SolveOptions

    for name, least in (("single24_llama70b", 2045.64), ("cluster42_llama70b", 5900.0)):
        for partial in (True, False):
            options = SolveOptions(method="blocks", time_limit_s=20, partial_inference=partial)
            assert solve(reference(name).problem, options).objective_tokens_per_s >= least
