"""Any placement in compatibility mode; published ones run alike either way."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench.simulator import cli
from bench.simulator.reference.planned import part_of, setup_of
from bench.simulator.reference.reading import ReferenceDataError
from bench.simulator.reference.setup import read_setup_file
from helix_mq.errors import HelixError
from solver.reference_json import read_reference_cluster
from solver.search import solve
from solver.search_types import SolveOptions

DATA = Path(__file__).parents[5] / "shared" / "reference"


@pytest.fixture
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the published system's data is not beside the project")
    return DATA


def test_a_published_placement_is_set_up_as_its_file_says(data: Path) -> None:
    """Nodes, limits, loading time and links are the file's; flows are another max flow."""
    cluster, profiles = data / "clusters" / "single24_llama70b.json", data / "profiles.json"
    theirs = read_setup_file(cluster, "helix", profiles)
    ours = setup_of(cluster, profiles, read_reference_cluster(cluster).published["helix"].placement)
    assert set(ours.nodes) == set(theirs.nodes)
    assert (ours.start_s, ours.times) == (theirs.start_s, theirs.times)
    speeds = {(k.src, k.dst): (k.bytes_per_s, k.latency_s) for k in ours.links}
    for link in theirs.links:
        assert speeds[link.src, link.dst] == (link.bytes_per_s, link.latency_s)
    sums = [sum(k.flow or 0.0 for k in s.links if k.src == -1) for s in (ours, theirs)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


def test_the_plan_with_the_larger_flow_serves_less_there(data: Path, tmp_path: Path) -> None:
    """The published simulator's verdict on the proven best flow, which chunks overturn."""
    from bench.simulator.reference.planned import run_on

    cluster = data / "clusters" / "single24_llama70b.json"
    problem = read_reference_cluster(cluster).problem
    best = solve(problem, SolveOptions(method="blocks", time_limit_s=10)).placement
    load = part_of("maxflow", "offline", None, None)
    assert run_on(cluster, data, best, load).decode_tokens_per_s == pytest.approx(224, rel=0.03)
    helix = run_on(cluster, data, "helix", load)
    assert helix.decode_tokens_per_s == pytest.approx(252, rel=0.03)


@pytest.mark.parametrize(
    ("scheduler", "mode", "says"),
    [("swarm", "offline", "--in-flight"), ("best", "offline", "best"), ("maxflow", "x", "x")],
)
def test_loads_that_mean_nothing_are_refused(scheduler: str, mode: str, says: str) -> None:
    with pytest.raises(ReferenceDataError, match=says):
        part_of(scheduler, mode, None, None)


def test_the_command_line_refuses_other_profiles_and_clusters() -> None:
    app = typer.Typer()
    cli.register(app)
    for arguments in (["c.json", "--profile", "theirs"], ["c.toml", "--profile", "reference"]):
        result = CliRunner().invoke(app, ["simulate", *arguments])
        assert isinstance(result.exception, HelixError)
