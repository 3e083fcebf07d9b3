"""`helix-mq plan` as a program: JSON out, plans saved and verified, refusals in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from bench.simulator.cli_inputs import read_inputs
from helix_mq.cli import build_app, main
from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from router.planned import read_planned
from solver.cli_show import _served as described
from solver.objective import ServingEstimate, Workload
from solver.plan_file import read_plan

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "clusters"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published clusters are not beside the project"
)


def helix(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As a process: what it prints, and the code it ends with."""
    command = [sys.executable, "-m", "helix_mq", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, cwd=folder
    )


def here(*arguments: str) -> Result:
    """In this process, which has imported the solver: a process for each of many commands spends
    all its time on that."""
    return CliRunner().invoke(build_app(), arguments)


@needs_reference
def test_a_plan_is_printed_saved_and_verified(tmp_path: Path) -> None:
    saved = tmp_path / "plan.toml"
    cluster = str(REFERENCE / "single24_llama70b.json")
    made = helix("plan", cluster, "--time-limit", "60", "--json", "--save", str(saved))
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


CONFIG = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
"intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
"num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
"rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
"torch_dtype": "float16"}"""


def test_a_described_cluster_is_planned_changed_and_taken_elsewhere(tmp_path: Path) -> None:
    """As a newcomer would: generate, plan, what if, draw, verify, to and from ini files."""
    cluster, model = tmp_path / "c.toml", tmp_path / "config.json"
    model.write_text(CONFIG)
    made = here("cluster", "generate", "single", "--nodes", "L4=2,T4=3", "-o", str(cluster))
    assert made.exit_code == 0, made.stderr
    saved, picture = tmp_path / "plan.toml", tmp_path / "plan.svg"
    first = here(
        *("plan", str(cluster), "--model", str(model), "--time-limit", "10"),
        *("--save", str(saved), "--plot", str(picture)),
    )
    assert first.exit_code == 0, first.stderr
    assert "you at" in first.stdout, "the min cut is told in words"
    assert "expected to serve" in first.stdout
    assert picture.read_text().startswith("<?xml")
    assert here("plan", "verify", str(saved)).exit_code == 0
    more = here(
        *("plan", str(cluster), "--model", str(model), "--time-limit", "10", "--json"),
        *("--add", "A100@local=1", "--remove", "t4-0", "--method", "blocks"),
    )
    assert more.exit_code == 0, more.stderr
    plan = json.loads(more.stdout)
    assert "new-a100-1" in plan["placement"]
    assert "t4-0" not in plan["placement"]
    assert plan["explanation"]["min_cut"]
    solution, back = tmp_path / "solution.ini", tmp_path / "back.toml"
    simulator = tmp_path / "simulator.ini"
    out = here(
        *("plan", "export", str(saved), "--solution", str(solution)),
        *("--simulator", str(simulator)),
    )
    assert out.exit_code == 0, out.stderr
    again = here(
        *("plan", "import", str(solution), "--cluster", str(cluster)),
        *("--model", str(model), "--save", str(back)),
    )
    assert again.exit_code == 0, again.stderr
    assert read_plan(back).placement == read_plan(saved).placement
    ini, profile, copy = tmp_path / "c.ini", tmp_path / "p.ini", tmp_path / "copy.toml"
    taken = here("cluster", "export", str(cluster), "--to", str(ini), "--profile", str(profile))
    assert taken.exit_code == 0, taken.stderr
    assert here("cluster", "import", str(ini), str(profile), "-o", str(copy)).exit_code == 0
    assert here("cluster", "show", str(copy)).exit_code == 0


def test_the_solver_leaves_its_files_beside_the_plan(tmp_path: Path) -> None:
    cluster, model = tmp_path / "c.toml", tmp_path / "config.json"
    model.write_text(CONFIG)
    assert (
        here("cluster", "generate", "single", "--nodes", "A100=2", "-o", str(cluster)).exit_code
        == 0
    )
    saved = tmp_path / "plan.toml"
    made = here(
        *("plan", str(cluster), "--model", str(model), "--method", "milp", "--time-limit", "30"),
        *("--warm-start", "swarm", "--save", str(saved), "--json"),
    )
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["proven_optimal"] is True
    kept = sorted(path.name for path in (tmp_path / "plan.milp").iterdir())
    assert kept == ["helix.lp", "solution.json", "trace.csv"]
    assert here("plan", str(saved.with_name("c.toml")), "--model", str(model)).exit_code == 0


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
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "tokens/s by" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("none.json",), "none.json"),
        (("c.toml",), "--model"),
        (("c.toml", "--plot", "a.pdf"), ".svg or .png"),
        (("c.toml", "--warm-start", "x", "--model", "config.json"), "--warm-start x"),
        (("c.toml", "--min-bandwidth", "3", "--model", "config.json"), "--min-bandwidth"),
        (("c.toml", "--method", "foo", "--model", "config.json"), "foo"),
        (("c.toml", "--objective", "foo", "--model", "config.json"), "foo"),
        (("c.toml", "--seed", "-1", "--model", "config.json"), "seed=-1 must be in 0.."),
        (("c.toml", "--seed", "2147483648", "--model", "config.json"), "must be in 0.."),
        (("c.toml", "--model", "config.json", "--save", "."), "save=.: cannot be written"),
        (("c.toml", "--model", "config.json", "--save", "none/p.toml"), "no folder none"),
        (("c.toml", "--model", "config.json", "--plot", "none/p.svg"), "no folder none"),
        (("verify", "c.toml"), "there is no such field in a plan"),
        (("export", "none.toml", "--solution", "s.ini"), "none.toml"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: what a command prints and returns is decided in `main`."""
    (tmp_path / "config.json").write_text(CONFIG)
    (tmp_path / "c.toml").write_text(
        'name = "c"\nrouter = "r"\n[[nodes]]\nname = "a"\ntype = "A100"\nregion = "r"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["helix-mq", "plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert says in told
    assert told.count("\n") == 1
    assert "Traceback" not in told


def test_a_refused_process_ends_with_its_code_and_one_line(tmp_path: Path) -> None:
    refused = helix("plan", "none.json", folder=tmp_path)
    assert refused.returncode == 2
    assert "none.json" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_help_of_the_group_shows_the_options_of_planning() -> None:
    for group, option in (("plan", "--objective"), ("simulate", "--fault")):
        told = helix(group, "--help").stdout
        assert f"Usage: helix-mq {group} [OPTIONS]" in told.replace(
            "python -m helix_mq", "helix-mq"
        )
        assert option in told
        assert "verify" in told or "compare" in told
        assert "NODE2@S" in told or group == "plan"


def test_an_unknown_gpu_type_is_told_when_a_cluster_is_generated(tmp_path: Path) -> None:
    made = helix("cluster", "generate", "single", "--nodes", "A100=1,A1000=2", folder=tmp_path)
    assert made.returncode == 0
    assert "machine type 'A1000' is not known" in made.stderr
    assert made.stderr.count("\n") == 1
    assert 'type = "A1000"' in made.stdout


def test_what_limits_serving_is_said_in_words() -> None:
    busy = ServingEstimate(10.0, 5.0, 0.5, "always busy", "a -> b")
    assert described(busy).endswith("limited by a -> b, which is always busy")
    full = ServingEstimate(10.0, 5.0, 0.5, "KV room", "a")
    assert described(full).endswith("limited by KV room, busiest is a")
    far = ServingEstimate(10.0, 5.0, 0.5, "KV room", "a", straight_share=0.4)
    assert "0.50 s per token of each (40 % straight from last hop to first); lim" in described(far)
    none = ServingEstimate(0.0, 0.0, float("inf"), "no flow", "")
    assert described(none) == "expected to serve nothing: no flow"


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
        ('num_layers = 2\ninput_tokens = 9\n[nodes]\na = "0:2"', "output_tokens is missing"),
        (
            'num_layers = 2\ninput_tokens = 0\noutput_tokens = 1\n[nodes]\na = "0:2"',
            "input_tokens=0 is not in",
        ),
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
    assert plan.workload is None


def test_a_plan_is_verified_and_run_with_the_lengths_it_was_made_for(tmp_path: Path) -> None:
    """Speeds by layers follow from how long prompts and answers are: with other lengths the plan's
    own figure would not hold."""
    cluster, model = tmp_path / "c.toml", tmp_path / "config.json"
    model.write_text(CONFIG)
    shape = ("single", "--nodes", "L4=2,T4=3")
    assert here("cluster", "generate", *shape, "-o", str(cluster)).exit_code == 0
    saved, usual = tmp_path / "plan.toml", tmp_path / "usual.toml"
    made = here(
        *("plan", str(cluster), "--model", str(model), "--method", "petals", "--no-explain"),
        *("--input-tokens", "2000", "--output-tokens", "100", "--save", str(saved)),
    )
    assert made.exit_code == 0, made.stderr
    plan = read_plan(saved)
    assert plan.workload == Workload(2000.0, 100.0)
    assert plan.source is not None
    assert plan.source.workload == plan.workload
    assert verified(saved) == pytest.approx(plan.claimed_tokens_per_s)
    assert verified(saved, cluster) == verified(saved)
    lines = saved.read_text().splitlines()
    usual.write_text("\n".join(x for x in lines if not x.startswith(("input_", "output_"))))
    assert read_plan(usual).workload is None, "as plans were saved before"
    assert abs(verified(usual) - verified(saved)) > 0.01 * verified(saved)
    # The router computes flows with these speeds; the simulator asks for such lengths.
    routed, simulated = read_planned(saved, 32).problem, read_inputs(None, None, [str(saved)], 0)
    assert routed == plan.source.problem() == simulated.problem
    assert routed != read_planned(usual, 32).problem
    assert "prompt=exponential(2000),output=exponential(100)" in simulated.default_workload()
    usual_lengths = read_inputs(None, None, [str(usual)], 0).default_workload()
    assert "prompt=exponential(750),output=exponential(240)" in usual_lengths


def verified(plan: Path, cluster: Path | None = None) -> float:
    """The max flow that `plan verify` finds, whether it is the claimed one or not."""
    against = () if cluster is None else ("--cluster", str(cluster))
    said = here("plan", "verify", str(plan), *against, "--json")
    return float(json.loads(said.stdout)["tokens_per_s"])
