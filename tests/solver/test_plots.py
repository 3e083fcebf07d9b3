"""Plots of plans: what a picture holds, what the files say, and the refusals."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.flow import CutKind, max_flow
from solver.plots import COLOURS, picture, plot_plan
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.search_types import PlanResult

pytest.importorskip("matplotlib", reason="plots are drawn with the optional extra `plot`")

PNG = b"\x89PNG\r\n\x1a\n"


def node(name: str, kind: str, region: str, rate: float = 1000.0, nic: float = 1e9) -> ProblemNode:
    return ProblemNode(NodeId(name), kind, region, 8, (rate,) * 8, (), nic, nic, 10**9)


def link(src: str, dst: str, bytes_per_s: float = 1e9) -> ProblemLink:
    return ProblemLink(NodeId(src), NodeId(dst), bytes_per_s, 0.001)


def planned(problem: Problem, slices: dict[str, tuple[int, int]]) -> PlanResult:
    placement = Placement(
        problem.num_layers, {NodeId(n): LayerRange(a, b) for n, (a, b) in slices.items()}
    )
    flow = max_flow(problem, placement)
    return PlanResult(
        method="blocks",
        placement=placement,
        flow=flow,
        objective_tokens_per_s=flow.tokens_per_s,
        upper_bound_tokens_per_s=2 * flow.tokens_per_s,
        bound_reason="twice",
        gap=1.0,
        seconds=0.1,
        proven_optimal=False,
    )


@pytest.fixture
def split() -> tuple[Problem, PlanResult]:
    """a sends 100 tokens/s to b and 20 to c on slow links; d holds nothing."""
    problem = Problem(
        "split",
        12,
        4,
        1000,
        (
            node("c", "T4", "us"),
            node("d", "T4", "us"),
            node("b", "T4", "eu"),
            node("a", "A100", "eu"),
        ),
        (
            link(SOURCE, "a"),
            link("a", "b", 100e3),
            link("a", "c", 20e3),
            link("b", SINK),
            link("c", SINK),
        ),
    )
    return problem, planned(problem, {"a": (0, 7), "b": (4, 12), "c": (7, 12)})


def test_rows_are_grouped_by_region_and_type(split: tuple[Problem, PlanResult]) -> None:
    view = picture(*split)
    assert [row.node for row in view.rows] == ["a", "b", "c", "d"]
    assert [row.use for row in view.rows] == pytest.approx([0.12, 0.1, 0.02, 0.0])
    assert view.rows[3].layers is None
    assert view.num_layers == 12
    assert view.title == "split: 120.0 tokens/s by blocks"
    assert "upper bound 240.0 tokens/s, gap 100.0%" in view.subtitle
    assert "3 of 4 nodes" in view.subtitle


def test_streams_carry_the_flow_and_the_cut(split: tuple[Problem, PlanResult]) -> None:
    view = picture(*split)
    drawn = {
        (s.src_row, s.dst_row): (s.layer, round(s.tokens_per_s), s.in_cut) for s in view.streams
    }
    assert drawn == {
        (None, 0): (0, 120, False),
        (0, 1): (7, 100, True),
        (0, 2): (7, 20, True),
        (1, None): (12, 100, False),
        (2, None): (12, 20, False),
    }
    assert not any(row.cut for row in view.rows)


@pytest.mark.parametrize(
    ("rate", "nic", "cut"),
    [
        (50.0, 1e9, CutKind.ENGINE),
        (1000.0, 30e3, CutKind.NIC_OUT),
    ],
)
def test_a_node_in_the_cut_is_marked(rate: float, nic: float, cut: CutKind) -> None:
    problem = Problem(
        "line",
        8,
        4,
        1000,
        (node("a", "T4", "eu", rate, nic), node("b", "T4", "eu")),
        (link(SOURCE, "a"), link("a", "b"), link("b", SINK)),
    )
    view = picture(problem, planned(problem, {"a": (0, 4), "b": (4, 8)}))
    assert [row.cut for row in view.rows] == [{cut}, set()]


def test_svg_keeps_its_words_and_is_the_same_twice(
    split: tuple[Problem, PlanResult], tmp_path: Path
) -> None:
    first, second = tmp_path / "one.svg", tmp_path / "two.SVG"
    plot_plan(*split, first)
    plot_plan(*split, second)
    assert first.read_bytes() == second.read_bytes()
    words = " ".join(ElementTree.parse(first).getroot().itertext())
    for text in ("split: 120.0 tokens/s", "gap 100.0%", "a  A100", "100 of 1,000 (10%)"):
        assert text in words
    assert "holds no layers" in words
    assert "bottleneck" in words
    assert "eu" in words


def test_more_or_fewer_facts_change_the_drawing(
    split: tuple[Problem, PlanResult], tmp_path: Path
) -> None:
    problem, result = split
    marked, unmarked = tmp_path / "marked.svg", tmp_path / "unmarked.svg"
    plot_plan(problem, result, marked)
    plot_plan(problem, replace(result, flow=replace(result.flow, min_cut=())), unmarked)
    assert marked.read_text().count("#d00000") > 2
    assert unmarked.read_text().count("#d00000") == 0


def test_the_bound_in_words(split: tuple[Problem, PlanResult]) -> None:
    problem, result = split
    assert "proven optimal" in picture(problem, replace(result, proven_optimal=True)).subtitle
    unbounded = replace(result, upper_bound_tokens_per_s=float("inf"), gap=float("inf"))
    assert "no upper bound" in picture(problem, unbounded).subtitle


@pytest.mark.parametrize("count", [1, 50, 400])
def test_any_number_of_nodes_is_drawn(count: int, tmp_path: Path) -> None:
    nodes = tuple(node(f"n{i:03}", f"GPU{i % 11}", f"r{i % 4}") for i in range(count))
    links = tuple(k for n in nodes for k in (link(SOURCE, n.name), link(n.name, SINK)))
    problem = Problem("many", 8, 4, 1000, nodes, links)
    result = planned(problem, {n.name: (0, 8) for n in nodes})
    assert len(picture(problem, result).rows) == count
    path = tmp_path / "many.png"
    plot_plan(problem, result, path)
    data = path.read_bytes()
    assert data.startswith(PNG)
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert 1500 < width < 2500
    assert 300 < height < 6000


def test_more_types_than_colours_stay_apart(tmp_path: Path) -> None:
    count = len(COLOURS) + 2
    nodes = tuple(node(f"n{i}", f"GPU{i:02}", "eu") for i in range(count))
    links = tuple(k for n in nodes for k in (link(SOURCE, n.name), link(n.name, SINK)))
    problem = Problem("types", 8, 4, 1000, nodes, links)
    path = tmp_path / "types.svg"
    plot_plan(problem, planned(problem, {n.name: (0, 8) for n in nodes}), path)
    assert "<pattern" in path.read_text()


@pytest.mark.parametrize("name", ["plan.pdf", "plan", "plan.svgz"])
def test_other_suffixes_are_refused(
    name: str, split: tuple[Problem, PlanResult], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.svg or \.png") as error:
        plot_plan(*split, tmp_path / name)
    assert error.value.param == "plot"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(split: tuple[Problem, PlanResult], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_plan(*split, tmp_path / "none" / "plan.svg")


def test_without_matplotlib_it_says_what_to_install(
    split: tuple[Problem, PlanResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The import system treats None as "not installed".
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'helix-mq\[plot\]'"):
        plot_plan(*split, tmp_path / "plan.svg")


def test_neither_pyplot_nor_matplotlib_is_loaded_unasked() -> None:
    check = "import sys, solver.plots; assert not [m for m in sys.modules if 'matplotlib' in m]"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_pyplot_is_never_touched(split: tuple[Problem, PlanResult], tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_plan(*split, tmp_path / "plan.svg")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
