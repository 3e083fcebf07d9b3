"""Random small clusters, and the published data where it lies beside the project."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from helix_mq.ids import NodeId
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.reference_json import ReferenceCluster, read_reference_cluster

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
