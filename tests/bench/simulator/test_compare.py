"""Comparisons: cases in processes, order, failures, the table, the figure, real simulations."""

from __future__ import annotations

import importlib
import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.simulator.compare import Case, Comparison, Outcome, cases, compare
from bench.simulator.compare_native import NativeRun
from bench.simulator.compare_plots import plot_comparison
from bench.simulator.compare_text import describe
from bench.simulator.records import Recorder
from bench.simulator.settings import SimSettings
from bench.simulator.stats import Objectives, Report, report
from helix_mq.errors import ConfigError

TWO_BY_TWO = cases(["wide", "deep"], ["maxflow", "swarm"], ["w"])


def measured(case: Case) -> Report:
    """A run worked out by hand: twice the tokens on the wide placement."""
    recorder = Recorder(0, 10)
    tokens = 20 if case.placement == "wide" else 10
    recorder.on_arrival("r", 0.0, 5, tokens)
    for number in range(tokens):
        recorder.on_token("r", 1.0 + number * 0.1, 1)
    recorder.on_end("r", 4.0, True, "length")
    recorder.on_step("n", 0.0, 5.0, 2, 0, 4)
    return report(recorder, Objectives(ttft_s=2.0))


def fails_on_deep(case: Case) -> Report:
    if case.placement == "deep":
        raise ConfigError("placement: too deep")
    if case.scheduler == "swarm":
        raise ZeroDivisionError("a fault of ours")
    return measured(case)


def test_cases_are_all_combinations() -> None:
    found = cases(["a", "b"], ["s"], ["v", "w"], [1, 2])
    assert len(found) == 8
    assert found[:3] == [Case("a", "s", "v", 1), Case("a", "s", "v", 2), Case("b", "s", "v", 1)]
    assert found[0].label(found) == "a · v · seed 1"
    assert found[0].label(found[:1]) == "a"
    with pytest.raises(ConfigError, match="a scheduler is given twice"):
        cases(["a"], ["s", "s"], ["w"])
    with pytest.raises(ConfigError, match="no workload is given"):
        cases(["a"], ["s"], [])
    with pytest.raises(ConfigError, match="16384 cases"):
        cases(map(str, range(128)), map(str, range(128)), ["w"])


@pytest.fixture(scope="module")
def four() -> Comparison:
    return compare(TWO_BY_TWO, measured, processes=1)


def test_outcomes_are_in_the_order_of_the_cases(four: Comparison) -> None:
    seen: list[tuple[Case, int, int]] = []
    again = compare(TWO_BY_TWO, measured, 1, lambda o, done, of: seen.append((o.case, done, of)))
    assert [o.case for o in again.outcomes] == TWO_BY_TWO
    assert [o.report for o in again.outcomes] == [o.report for o in four.outcomes]
    assert [(done, of) for _, done, of in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_case_that_fails_costs_only_itself() -> None:
    found = compare(TWO_BY_TWO, fails_on_deep, processes=1)
    errors = [outcome.error for outcome in found.outcomes]
    assert errors == ["", "ZeroDivisionError: a fault of ours", *["placement: too deep"] * 2]
    text = describe(found)
    assert "deep · maxflow: placement: too deep" in text
    assert text.splitlines()[1].startswith("wide · maxflow")


def test_the_table_and_the_json(four: Comparison, tmp_path: Path) -> None:
    lines = describe(four).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "wide · maxflow", "wide · swarm", "deep · maxflow", "deep · swarm"
    ]  # fmt: skip
    assert "*100%" in lines[1]
    assert " 47%" in lines[3]  # 0.9 of 1.9 decode tokens/s
    four.write_json(tmp_path / "c.json")
    read = json.loads((tmp_path / "c.json").read_text())["cases"]
    assert [case["report"]["decode_tokens_per_s"] for case in read] == [1.9, 1.9, 0.9, 0.9]
    with pytest.raises(ConfigError, match="cannot be written"):
        four.write_json(tmp_path / "none" / "c.json")


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="processes=0"):
        compare(TWO_BY_TWO, measured, processes=0)
    with pytest.raises(ConfigError, match="a case is given twice"):
        compare([TWO_BY_TWO[0]] * 2, measured, processes=1)
    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        compare(TWO_BY_TWO, lambda case: measured(case), processes=2)
    assert compare([], measured, processes=2).outcomes == ()


def test_the_figure(four: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with the optional extra `plot`")
    path = tmp_path / "c.svg"
    plot_comparison(four, path, "side by side")
    root = ElementTree.parse(path).getroot()
    said = ["".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")]
    for expected in ("side by side", "wide · maxflow", "deep · swarm", "1.9", "50%", "end to end"):
        assert expected in said
    nothing = Comparison((Outcome(TWO_BY_TWO[0], None, "failed", 0.0),))
    with pytest.raises(ConfigError, match="0 cases to draw"):
        plot_comparison(nothing, path)


def test_real_simulations_in_processes(make_cluster: Callable[..., Any], tmp_path: Path) -> None:
    problem, placement, step_times = make_cluster(
        {"a": (0, 3), "b": (3, 6), "c": (0, 3), "d": (3, 6)}
    )
    settings = SimSettings(warmup_s=5.0, duration_s=20.0)
    run = NativeRun(problem, {"square": placement}, step_times, settings, Objectives(ttft_s=60))
    workload = "synthetic:prompt=uniform(10,200),output=uniform(5,20)"
    todo = cases(["square", "unknown"], ["maxflow", "random"], [workload])
    apart = compare(todo, run, processes=2)
    here = compare(todo, run, processes=1)
    # The same in any process, whatever its hashes.
    assert [o.report for o in apart.outcomes] == [o.report for o in here.outcomes]
    maxflow, random, *unknown = apart.outcomes
    assert [o.error for o in unknown] == ["placement='unknown' is not one of square"] * 2
    assert maxflow.report is not None
    assert random.report is not None
    assert maxflow.report.finished > 10
    assert maxflow.report != random.report
    (bad,) = compare(cases(["square"], ["fastest"], [workload]), run, processes=1).outcomes
    assert "choose one of maxflow" in bad.error


ENDED = """
import os, signal
from bench.simulator.records import Recorder
from bench.simulator.stats import report

PARENT = {parent}

def run(case):
    assert os.getpid() != PARENT
    if case.placement == "deep" and case.scheduler == "swarm":
        os.kill(os.getpid(), signal.SIGKILL)
    return report(Recorder(0, 1))
"""


def test_a_process_that_is_killed_costs_only_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the kernel ends one that takes too much memory, which takes the whole pool along."""
    (tmp_path / "cases_that_end.py").write_text(ENDED.format(parent=os.getpid()))
    monkeypatch.syspath_prepend(str(tmp_path))
    run = importlib.import_module("cases_that_end").run
    found = compare(TWO_BY_TWO, run, processes=2)
    assert [o.report is not None for o in found.outcomes] == [True, True, True, False]
    assert "ended from outside" in found.outcomes[-1].error
