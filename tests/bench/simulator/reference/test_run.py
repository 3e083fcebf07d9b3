"""Whole runs: the same log hash in any process, errors that say what is wrong, published cases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.simulator.reference.__main__ import main
from bench.simulator.reference.cases import CASES, Mode, SchedulerKind
from bench.simulator.reference.fidelity import compare, report
from bench.simulator.reference.queries import Query, read_offline
from bench.simulator.reference.reading import ReferenceDataError, read_table
from bench.simulator.reference.run import RunOptions, run_case, simulate
from bench.simulator.reference.setup import Setup, dense, read_setup
from bench.simulator.reference.tally import Tally, summarise

ROOT = Path(__file__).parents[4]
BuildSetup = Callable[..., Setup]


@pytest.mark.parametrize("kind", list(SchedulerKind))
def test_same_seed_same_log_and_every_query_ends(
    kind: SchedulerKind, build_setup: BuildSetup
) -> None:
    queries = [Query(20 + 7 * k % 90, 3 + k % 5, 0.05 * k) for k in range(80)]
    options = RunOptions(kind, Mode.ONLINE, 0.0, 1000.0, seed=3)
    results = [simulate(build_setup([(0, 2), (2, 4)]), queries, options) for _ in range(2)]
    assert results[0].log_hash == results[1].log_hash
    assert results[0].finished_queries == 80
    assert results[0].finished_decodes == sum(query.output_tokens for query in queries)


def test_the_log_tells_runs_apart(build_setup: BuildSetup) -> None:
    options = RunOptions(SchedulerKind.RANDOM, Mode.ONLINE, 0.0, 1000.0)
    one = simulate(build_setup([(0, 1)]), [Query(20, 3)], options)
    other = simulate(build_setup([(0, 1)]), [Query(21, 3)], options)
    assert one.log_hash != other.log_hash


def test_progress_does_not_change_the_run(build_setup: BuildSetup) -> None:
    options = RunOptions(SchedulerKind.RANDOM, Mode.OFFLINE, 0.0, 100.0, in_flight=5)
    queries = [Query(30, 4)] * 5000
    seen: list[float] = []
    plain = simulate(build_setup([(0, 2)]), queries, options)
    shown = simulate(
        build_setup([(0, 2)]),
        queries,
        options,
        progress=lambda name, at_s, total_s: seen.append(at_s / total_s),
    )
    assert shown.log_hash == plain.log_hash
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_max_flow_offline_fills_to_the_mark(build_setup: BuildSetup) -> None:
    # 260 expected tokens on two layers; 80% of 26,000 entries is 40 queries and one fed past it.
    setup = build_setup([(0, 2)], kv_entries=26_000)
    options = RunOptions(SchedulerKind.MAX_FLOW, Mode.OFFLINE, 150.0, 100.0)
    result = simulate(setup, [Query(20, 1000)] * 20_000, options)
    in_flight = result.finished_prompts - result.finished_queries
    assert 38 <= in_flight <= 42


def test_what_cannot_run_says_why(build_setup: BuildSetup) -> None:
    options = RunOptions(SchedulerKind.SWARM, Mode.OFFLINE, 0.0, 10.0)
    with pytest.raises(ReferenceDataError, match="number of queries in flight"):
        simulate(build_setup([(0, 1)]), [Query(5, 5)], options)
    flow = RunOptions(SchedulerKind.MAX_FLOW, Mode.ONLINE, 0.0, 10.0)
    with pytest.raises(ReferenceDataError, match="found no way"):
        simulate(build_setup([(0, 1)], kv_entries=10), [Query(5, 5)], flow)
    with pytest.raises(ReferenceDataError, match="no case 'nonsense'"):
        run_case("nonsense", Path("nowhere"))


def test_tables_are_read_with_errors_that_name_the_field(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    with pytest.raises(ReferenceDataError, match="cannot be read as JSON"):
        read_table(path)
    path.write_text('{"a": {"b": [1, "x"], "n": true, "t": {"0": 0, "x": 1}}}', "utf-8")
    table = read_table(path).table("a")
    for read in (
        lambda: table.wholes("b", 2),
        lambda: table.number("n"),
        lambda: table.whole("n"),
        lambda: table.text("b"),
        lambda: table.points("t"),
        lambda: table.tables("b"),
    ):
        with pytest.raises(ReferenceDataError, match=r"cluster\.json\.a\.[bnt]"):
            read()


def test_tables_interpolate_and_percentiles_index_down() -> None:
    assert dense(((0, 0.0), (2, 1.0), (4, 2.0))) == pytest.approx((0.0, 0.5, 1.0, 1.5, 2.0))
    tally = Tally(0.0, 10.0)
    for k in range(10):
        tally.decode_done(float(k + 1), 0, float(k))
    tally.decode_done(10.5, 0, 99.0)  # outside the window
    latencies = summarise(tally.decode_latencies_s)
    assert (latencies.count, latencies.max_s, latencies.mean_s) == (10, 9.0, 4.5)
    assert latencies.percentiles_s == {
        "p5": 0.0, "p25": 2.0, "p50": 5.0, "p75": 7.0, "p95": 9.0, "p99": 9.0
    }  # fmt: skip
    assert tally.finished_decodes == 11


def test_command_line_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense", "--data", "nowhere"]) == 2
    assert "no case 'nonsense'" in capsys.readouterr().err


def test_every_published_case_can_be_set_up(data: Path) -> None:
    for parts in CASES.values():
        for part in parts:
            setup = read_setup(data, part.cluster, part.placement)
            assert setup.nodes
            assert setup.num_layers == max(node.end for node in setup.nodes)
    assert read_offline(data)[0] == Query(194, 96)


def test_published_placements_compared_under_max_flow_are_identical(data: Path) -> None:
    comparison = compare("mp_swarm", data)
    assert comparison.identical
    assert comparison.within_target
    assert report([comparison], "test")["identical"] == 1


def test_published_separate_pipelines_are_identical(data: Path) -> None:
    assert compare("dist_llama70b_offline_separate", data).identical


def test_published_swarm_is_within_the_targets(data: Path) -> None:
    assert compare("dist_llama70b_offline_swarm", data).within_target


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_hash_seeds_do_not_matter(hash_seed: str, data: Path) -> None:
    command = (
        "from pathlib import Path; from bench.simulator.reference import run_case; "
        f"print(run_case('mp_swarm', Path({str(data)!r})).parts[0].log_hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert done.stdout.strip() == run_case("mp_swarm", data).parts[0].log_hash
