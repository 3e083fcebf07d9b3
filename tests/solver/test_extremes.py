"""Absurd but valid problems: the planner answers in bounded time and memory, or says why not."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.ids import NodeId
from solver.problem import SINK, SOURCE, Problem, ProblemError, ProblemLink, ProblemNode
from solver.search import solve
from solver.search_chain import crossing_of
from solver.search_types import Method, NoPlacement, SolveOptions

RATES = (1e-9, 1.0, 1e3, 1e12)
WIDTHS = (0.0, 0.125, 1e3, 1e9, 1e18)
LIMIT_S = 0.25
"""The search goes on to its limit: what an extreme breaks, it breaks at once."""
CAPPED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from tests.solver.test_extremes import slow_regions
from solver.search import solve
from solver.search_types import SolveOptions
print(solve(slow_regions(), SolveOptions(time_limit_s=10.0)).objective_tokens_per_s)
"""

PLANNED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (45, 45))
from helix_mq.cli import main
sys.argv[0] = "helix-mq"
try:
    main()
finally:
    with open("/proc/self/status") as status:
        peak_kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    print(int(peak_kib) * 1024, file=sys.stderr)
"""
"""The command, where processor time beyond its time limit and memory beyond reason end it. Its peak
is the kernel's for this program: what getrusage says counts the process it was forked from."""
CLUSTER = """
name = "slow"
router = "eu"
[[nodes]]
name = "a100"
type = "A100"
count = {a100}
region = "eu"
[[nodes]]
name = "t4"
type = "T4"
count = 6
region = "us"
[[links]]
between = ["eu", "us"]
bandwidth = "1 bit/s"
latency = "3600 s"
"""
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def _problem(
    layers: int,
    machines: list[tuple[float, int, str]],
    width: float,
    latency_s: float = 0.001,
    activation_bytes: int = 16384,
) -> Problem:
    """Machines are (tokens/s at one layer, most layers, region); `width` is between regions."""
    nodes = tuple(
        ProblemNode(
            NodeId(f"n{i}"),
            f"type-{rate:g}-{most}",
            region,
            most,
            tuple(rate / k for k in range(1, most + 1)),
            tuple(1e6 / k for k in range(1, most + 1)),
            1e10,
            1e10,
            1,
        )
        for i, (rate, most, region) in enumerate(machines)
    )
    home = {SOURCE: "a", SINK: "a"} | {node.name: node.region for node in nodes}
    links = tuple(
        ProblemLink(a, b, 1e9 if home[a] == home[b] else width, latency_s)
        for a, b in itertools.permutations(home, 2)
        if a != SINK and b != SOURCE and (a, b) != (SOURCE, SINK)
    )
    return Problem("extreme", layers, 4, activation_bytes, nodes, links)


def slow_regions() -> Problem:
    """Two regions that only hold the model together, with 1 bit/s between them."""
    fast, slow = [(1e4, 17, "a")] * 3, [(2e3, 6, "b")] * 6
    return _problem(80, [*fast, *slow], 0.125)


def test_a_link_of_one_bit_per_second_is_planned_in_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CAPPED], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) > 0


@pytest.mark.parametrize(
    ("a100", "options"),
    [
        (3, ()),
        (3, ("--objective", "serving")),
        (6, ("--objective", "serving", "--input-tokens", "1e6")),
        (6, ("--objective", "serving", "--input-tokens", "1", "--output-tokens", "1")),
    ],
    ids=("auto", "serving", "longest-prompts", "single-tokens"),
)
def test_the_command_ends_by_its_time_limit_in_little_memory(
    tmp_path: Path, a100: int, options: tuple[str, ...]
) -> None:
    """Three A100s need the T4s behind the slow link; six do without."""
    cluster, model = tmp_path / "slow.toml", tmp_path / "config.json"
    cluster.write_text(CLUSTER.format(a100=a100), encoding="utf-8")
    model.write_text(json.dumps(LLAMA_70B), encoding="utf-8")
    words = ["plan", str(cluster), "--model", str(model), "--time-limit", "1", "--json", *options]
    done = subprocess.run(
        [sys.executable, "-c", PLANNED, *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 1:  # no placement found in the time, in words
        assert done.stderr.startswith("helix-mq: ")
    else:
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["objective_tokens_per_s"] > 0
    assert int(done.stderr.split()[-1]) < 2 << 30


@settings(deadline=None, max_examples=12)
@given(
    layers=st.sampled_from((1, 2, 40, 1000)),
    machines=st.lists(
        st.tuples(
            st.sampled_from(RATES), st.sampled_from((1, 2, 40, 1000)), st.sampled_from(("a", "b"))
        ),
        min_size=1,
        max_size=5,
    ),
    width=st.sampled_from(WIDTHS),
    latency_s=st.sampled_from((0.0, 3600.0)),
    activation_bytes=st.sampled_from((1, 16384, 2**60)),
    method=st.sampled_from(("blocks", "petals", "swarm", "separate-leftovers")),
)
def test_extremes_are_answered_or_refused_in_words(
    layers: int,
    machines: list[tuple[float, int, str]],
    width: float,
    latency_s: float,
    activation_bytes: int,
    method: Method,
) -> None:
    problem = _problem(layers, machines, width, latency_s, activation_bytes)
    try:
        result = solve(problem, SolveOptions(method=method, time_limit_s=LIMIT_S))
    except NoPlacement as error:
        assert error.message
        return
    assert 0 < result.objective_tokens_per_s <= result.upper_bound_tokens_per_s * (1 + 1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token_bytes", 0),
        ("token_bytes", 10**400),
        ("activation_bytes", 10**5000),
        ("activation_bytes", -1),
    ],
    ids=("token-none", "token-huge", "activation-unprintable", "activation-negative"),
)
def test_sizes_beyond_reason_are_refused_by_name(field: str, value: int) -> None:
    problem, changed = slow_regions(), cast(dict[str, Any], {field: value})
    with pytest.raises(ProblemError, match=field):
        replace(problem, **changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens_per_s_by_layers", (1e13,) * 17),
        ("nic_in_bytes_per_s", 1e19),
        ("nic_out_bytes_per_s", float("nan")),
        ("vram_bytes", 10**5000),
    ],
    ids=("rate", "nic-in", "nic-out", "vram"),
)
def test_node_figures_beyond_reason_are_refused_by_name(field: str, value: Any) -> None:
    node, changed = slow_regions().nodes[0], cast(dict[str, Any], {field: value})
    with pytest.raises(ProblemError, match=field):
        replace(node, **changed)


@pytest.mark.parametrize("link", [(1e19, 0.0), (1.0, 1e9), (float("inf"), 0.0), (1.0, -1.0)])
def test_links_beyond_reason_are_refused(link: tuple[float, float]) -> None:
    problem = slow_regions()
    with pytest.raises(ProblemError, match="n0 -> n1"):
        replace(problem, links=(ProblemLink(NodeId("n0"), NodeId("n1"), *link),))


def test_a_crossing_lists_no_more_ways_than_there_are_nodes() -> None:
    assert crossing_of(1e9, 1e-5, 0, 3, 6) is None
    assert crossing_of(1.0, 0.0, 0, 3, 6) is None
    two = crossing_of(2.0, 1.0, 0, 3, 6)
    assert two is not None
    assert two.ways == ((1, 2), (2, 1))
    most = crossing_of(18.0, 1.0, 0, 3, 6)
    assert most is not None
    assert most.ways == ((3, 6),)
