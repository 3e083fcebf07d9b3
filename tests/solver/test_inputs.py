"""From cluster file and model to a Problem: catalogue, measured tables, nodes added and removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from solver.explain_what_if import parse_addition
from solver.inputs import Source, read_input, read_problem
from solver.problem import SINK, SOURCE, ProblemError

CLUSTER = """
name = "two"
router = "eu"

[[nodes]]
name = "a100"
type = "A100"
count = 2
region = "eu"
nic = "16 Gbit/s"

[[nodes]]
name = "t4"
type = "T4"
region = "us"
{more}

[[links]]
between = ["eu", "us"]
bandwidth = "80 Mbit/s"
latency = "40 ms"
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def cluster(folder: Path, more: str = "") -> Path:
    path = folder / "cluster.toml"
    path.write_text(CLUSTER.format(more=more))
    return path


def test_catalogue_and_links_become_a_problem(tmp_path: Path, model: Path) -> None:
    given = read_input(Source(cluster(tmp_path), model))
    problem = given.problem
    assert problem.num_layers == 32
    assert problem.activation_bytes == 4096 * 2
    a100, t4 = problem.node(NodeId("a100-0")), problem.node(NodeId("t4"))
    assert (a100.type_name, a100.region, a100.nic_in_bytes_per_s) == ("A100", "eu", 2e9)
    assert a100.max_layers > t4.max_layers > 0
    assert a100.tokens_per_s(4) > t4.tokens_per_s(4) > 0
    assert len(t4.kv_tokens_by_layers) == t4.max_layers
    # More layers, less room for the cache beside them.
    assert sorted(t4.kv_tokens_by_layers, reverse=True) == list(t4.kv_tokens_by_layers)
    speeds = {(k.src, k.dst): (k.bytes_per_s, k.latency_s) for k in problem.links}
    assert speeds["a100-0", "t4"] == speeds["t4", "a100-1"] == (1e7, 0.04)
    assert speeds["a100-0", "a100-1"] == (1e9, 0.001)
    assert speeds[SOURCE, "t4"] == speeds["t4", SINK] == (1e7, 0.04)
    assert len(speeds) == 3 * 2 + 3 + 3
    assert given.step_times is not None
    assert sorted(given.step_times) == ["A100", "T4"]


def test_measured_tables_replace_the_catalogue(tmp_path: Path, model: Path) -> None:
    rows = ["phase,batch,seconds_per_layer"]
    rows += [f"prefill,{n},{n * 1e-5}" for n in (1, 1000)]
    rows += [f"decode,{n},{1e-3 + n * 1e-5}" for n in (1, 100)]
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    path = cluster(tmp_path, 'tables = "mine.csv"\nvram = "20 GB"')
    given = read_input(Source(path, model))
    assert given.step_times is not None
    assert given.step_times["T4/20GB/mine"].prefill == ((1.0, 1e-5), (1000.0, 1e-2))
    node = given.problem.node(NodeId("t4"))
    assert node.type_name == "T4/20GB/mine"
    assert node.vram_bytes == 20 * 10**9
    usual = read_problem(cluster(tmp_path), model).node(NodeId("t4"))
    assert node.max_layers > usual.max_layers


def test_weights_of_fewer_bits_leave_room_for_more_layers(tmp_path: Path, model: Path) -> None:
    held = {}
    for bits in ("none", "int8", "int4"):
        path = cluster(tmp_path, f'vram = "8 GB"\nquantise = "{bits}"')
        node = read_problem(path, model).node(NodeId("t4"))
        held[bits] = node.max_layers
        assert node.type_name == ("T4/8GB" if bits == "none" else f"T4/8GB/{bits}")
    assert 0 < held["none"] < held["int8"] < held["int4"]


def test_a_type_that_only_its_tables_know_needs_its_memory(tmp_path: Path, model: Path) -> None:
    text = CLUSTER.format(more='tables = "mine.csv"').replace('"T4"', '"HomeGrown"')
    (tmp_path / "mine.csv").write_text(
        "phase,batch,seconds_per_layer\nprefill,1,0.1\nprefill,9,0.2\ndecode,1,0.1\ndecode,9,0.2\n"
    )
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="HomeGrown"):
        read_problem(path, model)
    path.write_text(text.replace('tables = "mine.csv"', 'tables = "mine.csv"\nvram = "16 GB"'))
    assert read_problem(path, model).node(NodeId("t4")).max_layers > 0


def test_nodes_come_and_go(tmp_path: Path, model: Path) -> None:
    source = Source(
        cluster(tmp_path),
        model,
        add=(parse_addition("T4=2"), parse_addition("H100@us")),
        remove=(NodeId("a100-1"),),
    )
    problem = source.problem()
    assert [n.name for n in problem.nodes] == ["a100-0", "t4", "new-t4-1", "new-t4-2", "new-h100-1"]
    added = problem.node(NodeId("new-t4-2"))
    assert (added.region, added.tokens_per_s(2)) == (
        "us",
        problem.node(NodeId("t4")).tokens_per_s(2),
    )
    assert problem.node(NodeId("new-h100-1")).vram_bytes == 80 * 10**9
    assert not [k for k in problem.links if "a100-1" in (k.src, k.dst)]


@pytest.mark.parametrize(
    ("add", "remove", "says"),
    [
        ("L9", (), "L9"),
        ("T4@mars", (), "no such region"),
        (None, ("zz",), "no such node"),
        (None, ("a100-0", "a100-1", "t4"), "no node is left"),
    ],
)
def test_wrong_what_ifs_are_refused_in_words(
    tmp_path: Path, model: Path, add: str | None, remove: tuple[str, ...], says: str
) -> None:
    source = Source(
        cluster(tmp_path),
        model,
        add=(parse_addition(add),) if add else (),
        remove=tuple(NodeId(n) for n in remove),
    )
    with pytest.raises(ConfigError, match=says):
        source.problem()


def test_a_machine_list_alone_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model"):
        read_problem(cluster(tmp_path))


@pytest.mark.parametrize("text", ["", "@eu=1", "L4=0", "L4=x", "L4=99999", "L4@eu=-1"])
def test_additions_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ProblemError, match="TYPE@REGION=COUNT"):
        parse_addition(text)


@pytest.mark.parametrize("text", ["L4", "L4=3", "L4@eu-west", "L4@eu-west=2"])
def test_additions_read_back(text: str) -> None:
    addition = parse_addition(text)
    assert parse_addition(str(addition)) == addition
