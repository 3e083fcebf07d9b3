"""router.toml: how routes are chosen, and plans; what is wrong is said in words, with its field."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_mq.clock import VirtualClock
from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.settings import load
from helix_mq.transport import MemoryTransport
from router.main import build_app, core_settings
from router.planned import read_planned
from router.schedulers_base import METHODS, Scheduling
from router.settings import RouterSettings

CLUSTER = """
name = "two"
router = "eu"
[[nodes]]
name = "a"
type = "A100"
region = "eu"
[[nodes]]
name = "b"
type = "T4"
region = "{region}"
"""
PLAN = """
cluster = "c.toml"
model = "{model}"
num_layers = 6
method = "petals"
[nodes]
a = "0:4"
b = "3:6"
"""


def settings(folder: Path, text: str) -> RouterSettings:
    path = folder / "router.toml"
    path.write_text(f'model = "m"\n{text}')
    return load(RouterSettings, path)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_named(tmp_path: Path, tiny_folder: Path, method: str) -> None:
    read = settings(tmp_path, f'[scheduling]\nmethod = "{method}"\nseed = 7\n')
    config = ModelConfig.from_folder(tiny_folder)
    assert core_settings(read, config).scheduling == Scheduling(method, 7)  # type: ignore[arg-type]


def test_max_flow_is_the_default(tmp_path: Path) -> None:
    assert settings(tmp_path, "").scheduling.method == "maxflow"


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ('[scheduling]\nmethod = "best"', "scheduling.method", "'shortest-queue'"),
        ("[scheduling]\nseed = -1", "scheduling.seed", "greater than or equal to 0"),
        ("[scheduling]\nsede = 1", "scheduling.sede", "no such setting"),
        (
            '[placement]\nplan = "p.toml"\nnodes = { a = "0:6" }',
            "placement",
            "either nodes or plan",
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, field: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, text)
    assert caught.value.param == field
    assert says in caught.value.message


def write_plan(folder: Path, model: Path, text: str = PLAN, region: str = "eu") -> Path:
    (folder / "c.toml").write_text(CLUSTER.format(region=region))
    path = folder / "plan.toml"
    path.write_text(text.replace("{model}", str(model)))
    return path


def test_a_plan_gives_layers_speeds_and_links(tmp_path: Path, tiny_folder: Path) -> None:
    planned = read_planned(write_plan(tmp_path, tiny_folder), 6)
    assert planned.placement.slices == {"a": LayerRange(0, 4), "b": LayerRange(3, 6)}
    assert planned.problem is not None
    assert [n.name for n in planned.problem.nodes] == ["a", "b"]
    assert len(planned.problem.links) == 6


def test_a_router_starts_from_a_plan(tmp_path: Path, tiny_folder: Path) -> None:
    path = write_plan(tmp_path, tiny_folder)
    read = settings(tmp_path, f'[placement]\nplan = "{path}"')
    app = build_app(read, tiny_folder, MemoryTransport(), VirtualClock())
    reason = app.status().reason
    assert reason.endswith("waiting for node a, b to join")


def test_a_plan_without_a_cluster_leaves_speeds_to_the_nodes(
    tmp_path: Path, tiny_folder: Path
) -> None:
    text = PLAN.replace('cluster = "c.toml"\nmodel = "{model}"\n', "")
    assert read_planned(write_plan(tmp_path, tiny_folder, text), 6).problem is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("num_layers = 6", "num_layers = 8", r"num_layers = 8, but the router's model has 6"),
        ('b = "3:6"', 'b = "3:5"', r"layer 5 on no node"),
        ('b = "3:6"', '"b c" = "3:6"', r"nodes.'b c': no node can have this name"),
        ('b = "3:6"', 'b = "3-6"', r'nodes.b = .3-6.: expected "first:end"'),
        ('cluster = "c.toml"', 'cluster = "d.toml"', r"d.toml: no such"),
        ('cluster = "c.toml"', 'clustre = "c.toml"', r"clustre: there is no such field"),
    ],
)
def test_a_plan_that_cannot_serve_is_refused_at_the_start(
    tmp_path: Path, tiny_folder: Path, old: str, new: str, says: str
) -> None:
    path = write_plan(tmp_path, tiny_folder, PLAN.replace(old, new))
    with pytest.raises(ConfigError, match=says):
        read_planned(path, 6)


def test_a_plan_over_links_that_are_not_there_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    path = write_plan(tmp_path, tiny_folder, region="us")
    with pytest.raises(ConfigError, match="the links of two lead nowhere"):
        read_planned(path, 6)
