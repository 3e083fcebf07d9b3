"""What is emulated: the examples, slower ones, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench.cluster.cli import cluster
from bench.cluster.run import Trial, run_simulated
from bench.cluster.slower import slowed_source
from bench.cluster.stand_in import most_pages
from bench.cluster.subject import Subject, read_subject
from helix_mq.errors import ConfigError
from router.planned import read_planned
from solver.inputs import Source
from solver.plan_file import read_plan

EXAMPLES = Path(__file__).parents[3] / "bench" / "cluster" / "examples"
PLANS = sorted(EXAMPLES.glob("*.plan.toml"))
WORKLOAD = "synthetic:prompt=60,output=20"


def subject_of(plan: Path, folder: Path, slower: float = 1.0) -> Subject:
    return read_subject(None, None, str(plan), 0, folder, slower)


@pytest.mark.parametrize("plan", PLANS, ids=lambda path: path.name)
def test_examples_are_what_the_live_router_reads(plan: Path, tmp_path: Path) -> None:
    subject = subject_of(plan, tmp_path)
    read = read_planned(subject.plan, subject.problem.num_layers)
    assert read.placement.slices == subject.placement.slices
    assert read.problem is not None
    assert read.problem.links == subject.problem.links
    assert not subject.placement.missing()
    for name, held in subject.placement.slices.items():
        assert len(held) <= subject.kv_pages(name) <= most_pages(len(held))


def test_slower_is_slower_in_everything(tmp_path: Path) -> None:
    plan = EXAMPLES / "two-regions.plan.toml"
    (tmp_path / "as-it-is").mkdir()
    normal = subject_of(plan, tmp_path / "as-it-is")
    slow = subject_of(plan, tmp_path, slower=4.0)
    for one, other in zip(normal.problem.links, slow.problem.links, strict=True):
        assert (one.src, one.dst) == (other.src, other.dst)
        assert other.bytes_per_s == pytest.approx(one.bytes_per_s / 4)
        assert other.latency_s == pytest.approx(4 * one.latency_s)
    for name in normal.placement.slices:
        assert slow.kv_pages(name) == normal.kv_pages(name)
        for a, b in zip(normal.times_of(name).decode, slow.times_of(name).decode, strict=True):
            assert b == pytest.approx((a[0], 4 * a[1]))
    # So it serves as much in four times the time; what is absolute in production stays.
    quick = run_simulated(normal, "random", Trial(WORKLOAD, 8, 5, 20))
    slowly = run_simulated(slow, "random", Trial(WORKLOAD, 8, 20, 80))
    assert slowly.decode_tokens_per_s == pytest.approx(quick.decode_tokens_per_s / 4, rel=0.15)
    assert read_planned(slow.plan, slow.problem.num_layers).problem is not None


def test_a_method_places_what_no_plan_does(tmp_path: Path) -> None:
    cluster, model = EXAMPLES / "one-region.toml", EXAMPLES / "model.json"
    subject = read_subject(cluster, model, "petals", 0, tmp_path)
    assert read_plan(subject.plan).placement.slices == subject.placement.slices


@pytest.mark.parametrize(
    ("placement", "cluster", "named"),
    [
        ("best", EXAMPLES / "one-region.toml", "--placement best"),
        ("petals", None, "no cluster"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    placement: str, cluster: Path | None, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        read_subject(cluster, EXAMPLES / "model.json", placement, 0, tmp_path)


@pytest.mark.parametrize("times", [0.5, 1e9, float("nan")])
def test_faster_than_it_is_cannot_be(times: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--slower"):
        slowed_source(Source(EXAMPLES / "one-region.toml"), times, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--scheduler", "best"], "--scheduler best"),
        (["--placement", "nowhere.toml"], "nowhere.toml"),
        (["--plot", "x.pdf"], "plot=x.pdf"),
    ],
)
def test_the_command_names_what_is_wrong(arguments: list[str], named: str) -> None:
    app = typer.Typer()
    app.command()(cluster)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert named in result.output + str(result.exception)


def test_a_trial_without_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="duration_s=0"):
        Trial(WORKLOAD, 8, 5, 0)
