"""`helix-mq plan` as a program: JSON out, plans saved and verified, refusals in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from solver.plan_file import read_plan

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "clusters"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published clusters are not beside the project"
)


def helix(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "helix_mq", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@needs_reference
def test_a_plan_is_printed_saved_and_verified(tmp_path: Path) -> None:
    saved = tmp_path / "plan.toml"
    cluster = str(REFERENCE / "single24_llama70b.json")
    made = helix("plan", cluster, "--time-limit", "10", "--json", "--save", str(saved))
    assert made.returncode == 0, made.stderr
    plan = json.loads(made.stdout)
    assert plan["objective_tokens_per_s"] == pytest.approx(2045.6, abs=0.1)
    assert plan["proven_optimal"] is True
    assert sum(end - first for first, end in plan["placement"].values()) >= 80
    verified = helix("plan", "verify", str(saved))
    assert verified.returncode == 0, verified.stdout
    assert "holds: 2045.6 tokens/s" in verified.stdout
    text = saved.read_text().replace("objective_tokens_per_s = 2", "objective_tokens_per_s = 3")
    saved.write_text(text)
    wrong = helix("plan", "verify", str(saved), "--json")
    assert wrong.returncode == 1
    assert json.loads(wrong.stdout)["ok"] is False


@needs_reference
def test_ctrl_c_gives_the_best_so_far(tmp_path: Path) -> None:
    cluster = str(REFERENCE / "3cluster24_llama70b.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "helix_mq", "plan", cluster, "--time-limit", "90"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # The first line of progress: there is an incumbent.
    assert "tokens/s" in process.stderr.readline()
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "tokens/s by" in out


def test_refusals_are_one_line(tmp_path: Path) -> None:
    missing = helix("plan", str(tmp_path / "none.json"))
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "num_layers"),
        ("num_layers = 2", "nodes"),
        ("num_layers = 2\n[nodes]\na = 3", 'expected "first:end"'),
        ('num_layers = 2\n[nodes]\na = "1:1"', "empty"),
        ('num_layers = 2\n[nodes]\na = "0:3"', "has 2"),
        ('num_layers = 2\nfoo = 1\n[nodes]\na = "0:2"', "foo"),
        ('num_layers = true\n[nodes]\na = "0:2"', "num_layers"),
        ('num_layers = 2\nobjective_tokens_per_s = "x"\n[nodes]\na = "0:2"', "objective"),
        ("num_layers = ", "TOML"),
    ],
)
def test_bad_plan_files_are_refused_by_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_plan(path)


def test_a_plan_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('name = "x"\nnum_layers = 3\n[nodes]\n"a.b-1" = "0:2"\nc = "1:3"\n')
    plan = read_plan(path)
    assert plan.placement.slices == {"a.b-1": LayerRange(0, 2), "c": LayerRange(1, 3)}
    assert plan.claimed_tokens_per_s is None
