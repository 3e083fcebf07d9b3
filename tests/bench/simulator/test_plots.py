"""Figures: what the files say, the order of nodes, empty runs and the refusals."""

from __future__ import annotations

import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.simulator.plots import plot_report
from bench.simulator.records import Recorder
from bench.simulator.stats import Report, report
from helix_mq.errors import ConfigError

pytest.importorskip("matplotlib", reason="plots are drawn with the optional extra `plot`")

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def run() -> Report:
    recorder, rng = Recorder(10, 60, bins=30), random.Random(3)
    at_s = 0.0
    for number in range(60):
        at_s += 1.0
        name = str(number)
        recorder.on_arrival(name, at_s, 100, 5)
        recorder.on_token(name, at_s + 0.1 + rng.random() * 0.1, 1)
        recorder.on_token(name, at_s + 0.4 + rng.random() * 0.1, 1)
        recorder.on_end(name, at_s + 0.5, True, "length")
        recorder.on_waiting(at_s, number % 4, number % 9)
        for node in ("n1", "n2", "n10"):
            recorder.on_step(node, at_s, at_s + 0.3, 2, 10, 4)
            recorder.on_kv(at_s, node, number, 100)
    return report(recorder)


def texts(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return ["".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")]


def test_an_svg_says_what_was_measured(run: Report, tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    plot_report(run, path)
    said = texts(path)
    for expected in ("time to first token", "inter-token latency", "fullest node", "waiting"):
        assert expected in said
    assert any(text.startswith(f"decode {run.decode_tokens_per_s:.1f} tokens/s") for text in said)
    nodes = [text.split()[0] for text in said if text.startswith("n") and text.endswith("%")]
    assert nodes == ["n1", "n2", "n10"]


def test_nodes_in_the_order_asked_for(run: Report, tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    plot_report(run, path, "a title", order=["n10", "unknown"])
    nodes = [text.split()[0] for text in texts(path) if text.startswith("n") and text[-1] == "%"]
    assert nodes == ["n10", "n1", "n2"]
    assert "a title" in texts(path)


def test_the_same_run_gives_the_same_bytes(run: Report, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.svg" for i in range(2)]
    for path in paths:
        plot_report(run, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_png(run: Report, tmp_path: Path) -> None:
    plot_report(run, tmp_path / "run.PNG")
    assert (tmp_path / "run.PNG").read_bytes().startswith(PNG)


def test_runs_without_anything_are_drawn(tmp_path: Path) -> None:
    for index, duration_s in enumerate((0.0, 10.0)):
        path = tmp_path / f"{index}.svg"
        plot_report(report(Recorder(0, duration_s)), path)
        assert "none in the window" in texts(path)
        assert "no steps in the window" in texts(path)


def test_many_nodes_are_drawn_without_names(tmp_path: Path) -> None:
    recorder = Recorder(0, 10)
    for number in range(300):
        recorder.on_step(f"n{number}", 0.0, number / 30, 1, 0, 1)
    path = tmp_path / "many.svg"
    plot_report(report(recorder), path)
    assert "300 nodes" in texts(path)
    assert not any(text.startswith("n17") for text in texts(path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("run.pdf", "must end in .svg or .png"), ("none/run.svg", "there is no folder")],
)
def test_files_that_cannot_be(run: Report, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        plot_report(run, tmp_path / name)
    assert caught.value.param == "plot"


def test_a_folder_in_the_file_s_place_is_said(run: Report, tmp_path: Path) -> None:
    (tmp_path / "run.svg").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_report(run, tmp_path / "run.svg")


def test_nothing_is_imported_until_something_is_drawn() -> None:
    code = "import sys, bench.simulator.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
