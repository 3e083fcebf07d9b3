"""The published clusters: what must be reached there, and each published heuristic reached again.

Only what takes a second or two of one core; `helix-mq bench planner targets` measures the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from solver.flow import max_flow
from solver.reference_json import ReferenceCluster, ReferenceFileError, read_reference_cluster
from solver.search import solve
from solver.search_types import Method, SolveOptions
from solver.verify import verify

Reference = Callable[[str], ReferenceCluster]
HEURISTICS: tuple[Method, ...] = ("petals", "swarm", "homogeneous")


@pytest.mark.parametrize(
    ("name", "optimum"),
    [
        ("single24_llama70b", 2045.6410473),
        ("cluster10_llama30b", 286.5874098),
        ("single24_llama30b", 1517.7373828),
    ],
)
def test_the_optimum_is_found_and_proven(reference: Reference, name: str, optimum: float) -> None:
    problem = reference(name).problem
    result = solve(problem, SolveOptions(method="auto", time_limit_s=60))
    assert result.objective_tokens_per_s == pytest.approx(optimum, rel=1e-8)
    assert result.proven_optimal
    assert result.gap <= 2e-6
    assert verify(problem, result.placement, flow=result.flow).ok


@pytest.mark.parametrize(
    ("name", "least", "gap"),
    [("3cluster24_llama70b", 1392.6, 0.60), ("cluster42_llama70b", 5800.0, 0.15)],
)
def test_blocks_alone_reach_what_is_known_to_exist(
    reference: Reference, name: str, least: float, gap: float
) -> None:
    problem = reference(name).problem
    result = solve(problem, SolveOptions(method="blocks", time_limit_s=60))
    assert result.objective_tokens_per_s >= least
    assert result.gap <= gap
    assert result.bound_reason
    assert verify(problem, result.placement, flow=result.flow).ok


def test_every_published_heuristic_is_reached_again(reference_dir: Path) -> None:
    """No lower than published; the published placement's own flow where no figure is."""
    seen: set[str] = set()
    for path in sorted((reference_dir / "clusters").glob("*.json")):
        try:
            cluster = read_reference_cluster(path)
        except ReferenceFileError as error:
            assert error.param == "nodes", "a part of a cluster, with no nodes of its own"
            continue
        for method in HEURISTICS:
            published = cluster.published.get(method)
            if published is None:
                continue
            seen.add(method)
            need = published.max_flow_tokens_per_s
            if need is None:
                need = max_flow(cluster.problem, published.placement).tokens_per_s
            # The bound is not what is tested: the least time that still places.
            result = solve(cluster.problem, SolveOptions(method=method, time_limit_s=0.1))
            assert result.objective_tokens_per_s >= need * (1 - 1e-6), (path.stem, method)
    assert seen == set(HEURISTICS)
