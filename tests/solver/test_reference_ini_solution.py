"""Solution files of the reference artifact: placements in, placements out, bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.reference_ini import (
    node_numbers,
    parse_solution,
    read_solution,
    write_solution,
)
from solver.reference_ini_text import ReferenceIniError

SOLUTION = """\
[Settings]
offset=2

[Solution]
compute_node_2=[0, 1, 2]
compute_node_3=[]
compute_node_4=[2, 3]
"""


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


def test_a_solution_is_a_placement(tmp_path: Path) -> None:
    path = tmp_path / "sol.ini"
    path.write_text(SOLUTION)
    placement = read_solution(path)
    assert placement == Placement(4, {NodeId("0"): LayerRange(0, 3), NodeId("2"): LayerRange(2, 4)})
    named = read_solution(path, num_layers=6, names=[NodeId(n) for n in ("x", "y", "z")])
    assert named.num_layers == 6
    assert named.slices == {"x": LayerRange(0, 3), "z": LayerRange(2, 4)}
    numbers = node_numbers([NodeId(n) for n in "012"])
    assert parse_solution(write_solution(placement, numbers), "again") == placement


def test_a_node_without_a_number_cannot_be_written() -> None:
    placement = Placement(2, {NodeId("z"): LayerRange(0, 2)})
    with pytest.raises(ReferenceIniError, match="node z has no number"):
        write_solution(placement, {NodeId("a"): 0})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("offset=2", "offset=x", r"\[Settings\] offset"),
        ("offset=2", "offset=3", "compute_node_2.*from 3 on"),
        ("compute_node_3", "node_3", r"\[Solution\] node_3"),
        ("[0, 1, 2]", "[0, 2]", "not consecutive"),
        ("[0, 1, 2]", "[0, 1, 1]", "not consecutive"),
        ("[0, 1, 2]", "[0, 'sink']", "numbers of layers"),
        ("[0, 1, 2]", "[999999998, 999999999]", "not in the model"),
        ("compute_node_4", "compute_node_002", "given twice"),
        ("[Settings]", "[Other]\n[Settings]", "nothing refers"),
    ],
)
def test_bad_solutions_are_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(ReferenceIniError, match=says):
        parse_solution(replaced(SOLUTION, old, new), "s.ini")


def test_solutions_are_held_to_the_model_and_the_nodes() -> None:
    with pytest.raises(ReferenceIniError, match="layer 3 is not in the model"):
        parse_solution(SOLUTION, "s.ini", num_layers=3)
    with pytest.raises(ReferenceIniError, match="compute_node_4"):
        parse_solution(SOLUTION, "s.ini", names=[NodeId("a"), NodeId("b")])
    with pytest.raises(ReferenceIniError, match="places no layer"):
        parse_solution("[Settings]\noffset=2\n[Solution]\n", "s.ini")


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.ini"
    with pytest.raises(ReferenceIniError, match="cannot be read"):
        read_solution(path)
    path.write_bytes(b"[Settings]\noffset=\xff2\n")
    with pytest.raises(ReferenceIniError, match="not UTF-8"):
        read_solution(path)


def test_files_beyond_the_bound_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.ini"
    path.write_text(SOLUTION)
    monkeypatch.setattr("solver.reference_ini_text.MAX_FILE_BYTES", len(SOLUTION))
    assert read_solution(path).num_layers == 4
    monkeypatch.setattr("solver.reference_ini_text.MAX_FILE_BYTES", len(SOLUTION) - 1)
    with pytest.raises(ReferenceIniError, match="larger than"):
        read_solution(path)
