"""Random small clusters, and the published data where it lies beside the project."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helix_mq.ids import NodeId
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.reference_json import ReferenceCluster, read_reference_cluster
from solver.search_index import ProblemIndex
from solver.search_judge import Judge

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
WIDE_BYTES_PER_S = 1e9


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    if not (REFERENCE / "clusters").is_dir():
        pytest.skip("the published system's data is not beside the project")
    return REFERENCE


@pytest.fixture(scope="session")
def reference(reference_dir: Path) -> Callable[[str], ReferenceCluster]:
    """Reads a published cluster by name, once per session."""
    read: dict[str, ReferenceCluster] = {}

    def cluster(name: str) -> ReferenceCluster:
        if name not in read:
            read[name] = read_reference_cluster(reference_dir / "clusters" / f"{name}.json")
        return read[name]

    return cluster


MakeProblem = Callable[..., Problem]


@pytest.fixture(scope="session")
def make_problem() -> MakeProblem:
    """A random cluster by seed.

    `wide`: no link ever binds. Otherwise some links are missing, some without bandwidth, some thin,
    and some NICs are slow. Tables may rise and fall, as measured ones do.
    """

    def make(
        seed: int, *, nodes: int, layers: int, max_layers: int | None = None, wide: bool = False
    ) -> Problem:
        rng = random.Random(seed)
        kinds = [(speed, rng.randint(1, max_layers or layers)) for speed in (100.0, 300.0, 1000.0)]
        tables = [
            tuple(round(speed / k * rng.uniform(0.7, 1.1), 3) for k in range(1, most + 1))
            for speed, most in kinds
        ]
        machines = []
        for i in range(nodes):
            kind = rng.randrange(len(kinds))
            nic = WIDE_BYTES_PER_S if wide else rng.choice((WIDE_BYTES_PER_S, 30_000.0))
            machines.append(
                ProblemNode(
                    name=NodeId(f"n{i}"),
                    type_name=f"type-{kind}",
                    region="" if wide else f"region-{rng.randrange(2)}",
                    max_layers=len(tables[kind]),
                    tokens_per_s_by_layers=tables[kind],
                    kv_tokens_by_layers=tuple(1e5 / k for k in range(1, len(tables[kind]) + 1)),
                    nic_in_bytes_per_s=nic,
                    nic_out_bytes_per_s=nic,
                    vram_bytes=1,
                )
            )
        links = []
        names = [node.name for node in machines]
        for a, b in itertools.permutations([SOURCE, *names, SINK], 2):
            if a == SINK or b == SOURCE or (a, b) == (SOURCE, SINK):
                continue
            width = WIDE_BYTES_PER_S
            if not wide:
                if rng.random() < 0.1:
                    continue
                width = rng.choice((0.0, 5_000.0, 20_000.0, WIDE_BYTES_PER_S, WIDE_BYTES_PER_S))
            links.append(ProblemLink(a, b, width, 0.001))
        return Problem(f"random-{seed}", layers, 2, 100, tuple(machines), tuple(links))

    return make


@pytest.fixture(scope="session")
def optimum() -> Callable[[Problem, bool], float]:
    """The largest max flow of any placement, by trying all that hold every layer."""

    def best(problem: Problem, partial: bool) -> float:
        index = ProblemIndex(problem)
        if len(index) == 0:
            return 0.0
        judge = Judge(index, partial_inference=partial)
        ways = [_slices(int(most), problem.num_layers) for most in index.max_layers]
        masks = np.zeros(1, dtype=np.int64)
        for slices in ways:
            held = np.array([(1 << end) - (1 << first) for first, end in slices])
            masks = (masks[:, None] | held[None, :]).reshape(-1)
        most = 0.0
        shape = [len(slices) for slices in ways]
        for number in np.flatnonzero(masks == (1 << problem.num_layers) - 1):
            pick = np.unravel_index(number, shape)
            chosen = [slices[int(i)] for slices, i in zip(ways, pick, strict=True)]
            first, end = np.array(chosen, dtype=np.int64).T
            most = max(most, judge.tokens_per_s(first, end))
        return most

    return best


def _slices(most: int, num_layers: int) -> list[tuple[int, int]]:
    slices = [(0, 0)]
    for size in range(1, most + 1):
        slices += [(first, first + size) for first in range(num_layers - size + 1)]
    return slices
