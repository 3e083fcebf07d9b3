"""`helix-mq simulate` and its inputs: options, placements, faults, refusals in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench.simulator.cli import register
from bench.simulator.cli_inputs import parse_fault, read_inputs
from bench.simulator.settings import Fault, FaultKind, Mode, Options, settings_of
from helix_mq.errors import ConfigError

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"
CLUSTER = REFERENCE / "clusters" / "single24_llama70b.json"
needs_reference = pytest.mark.skipif(
    not CLUSTER.is_file(), reason="the published clusters are not beside the project"
)
SHORT = "synthetic:prompt=100,output=20,rate=5"


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    register(made)

    @made.callback()
    def main() -> None:
        """A root, so that sub-commands keep their names."""

    return made


def said(app: typer.Typer, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@needs_reference
def test_a_run_reports_in_json_and_the_same_again(app: typer.Typer) -> None:
    line = [str(CLUSTER), "--placement", "helix", "--workload", SHORT, "--json"]
    line += ["--duration", "15", "--warmup", "5", "--tpot", "5"]
    one, two = said(app, *line), said(app, *line)
    assert one["run"]["event_hash"] == two["run"]["event_hash"]
    assert one["decode_tokens_per_s"] == two["decode_tokens_per_s"] > 0
    assert one["duration_s"] == 15
    assert one["goodput"]["requests_per_s"] > 0
    online = said(app, *line, "--mode", "online", "--scheduler", "shortest-queue")
    assert online["arrived"] == pytest.approx(75, abs=30)


@needs_reference
def test_a_run_for_people_and_a_plot(app: typer.Typer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "run.svg"
    line = ["run", str(CLUSTER), "--workload", SHORT, "--duration", "5", "--warmup", "1"]
    result = CliRunner().invoke(app, ["simulate", *line, "--plot", str(plot)])
    assert result.exit_code == 0, result.exception
    assert "decode" in result.stdout
    assert "event hash" in result.stdout
    assert plot.read_text().startswith("<?xml")


@needs_reference
def test_a_comparison_has_every_combination(app: typer.Typer) -> None:
    line = ["compare", str(CLUSTER), "--workload", SHORT, "--duration", "4", "--warmup", "1"]
    line += ["--placement", "helix", "--placement", "petals", "--processes", "1", "--json"]
    found = said(app, *line, "--scheduler", "maxflow", "--scheduler", "random")
    assert [(c["placement"], c["scheduler"], c["error"]) for c in found["cases"]] == [
        ("helix", "maxflow", ""),
        ("helix", "random", ""),
        ("petals", "maxflow", ""),
        ("petals", "random", ""),
    ]


@needs_reference
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--placement", "nope", "one of helix"),
        ("--scheduler", "best", "choose one of maxflow"),
        ("--mode", "sometimes", "offline, online or closed"),
        ("--fault", "kill:nobody@5", "no node of the placement"),
        ("--duration", "-1", "at least 0"),
        ("--prefill-tokens", "0", "at least 1"),
        ("--kv-high-water", "1.5", "must be in"),
        ("--workload", "azure", "does not begin with"),
        ("--plot", "run.bmp", "svg"),
    ],
)
def test_refusals_name_what_is_wrong(app: typer.Typer, option: str, value: str, words: str) -> None:
    result = CliRunner().invoke(app, ["simulate", str(CLUSTER), option, value])
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)


def test_without_cluster_or_plan_there_is_nothing_to_simulate() -> None:
    with pytest.raises(ConfigError, match="no cluster"):
        read_inputs(None, None, ["petals"], 0)


@needs_reference
def test_a_saved_plan_names_its_cluster_or_is_checked_against_another(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    text = f'name = "p"\ncluster = "{CLUSTER}"\nnum_layers = 80\nmethod = "m"\n[nodes]\n'
    plan.write_text(text + '"0" = "0:7"\n')
    inputs = read_inputs(None, None, [str(plan)], 0)
    assert len(inputs.placements[str(plan)].slices) == 1
    plan.write_text(text + '"zz" = "0:7"\n')
    with pytest.raises(ConfigError, match="node zz is not the cluster's"):
        read_inputs(None, None, [str(plan)], 0)


def test_faults_are_read() -> None:
    assert parse_fault("kill:a@60") == Fault(60.0, FaultKind.KILL, "a")
    assert parse_fault("cut:a:b@1.5") == Fault(1.5, FaultKind.CUT, "a", "b")
    assert parse_fault("slow:a:2.5@3") == Fault(3.0, FaultKind.SLOW, "a", factor=2.5)
    assert parse_fault("restore:a:b@9") == Fault(9.0, FaultKind.RESTORE, "a", "b")
    assert parse_fault("join:a@9") == Fault(9.0, FaultKind.JOIN, "a")


@pytest.mark.parametrize(
    "text", ["", "kill:a", "kill:a@x", "kill:a:b@1", "slow:a@1", "slow:a:0@1", "cut:a@1", "hit:a@1"]
)
def test_faults_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_fault(text)


def test_a_given_budget_is_every_nodes() -> None:
    chosen = settings_of(Options(mode="online", prefill_tokens=77))
    assert chosen.mode is Mode.ONLINE
    assert chosen.node.limits.prefill_tokens == 77
    assert not chosen.node.derive_budget
    assert settings_of(Options()).node.derive_budget


def test_an_unknown_published_case_is_refused(app: typer.Typer, tmp_path: Path) -> None:
    line = ["simulate", "--reference-case", "nope", "--data", str(tmp_path)]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, ConfigError)
    assert "no case 'nope'" in str(result.exception)
