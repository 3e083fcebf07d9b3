"""What a rank's process imports, wherever the node was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodes.model.parallel.group import RankGroup


def test_nothing_is_imported_from_the_folder_that_a_node_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "nodes"
    planted.mkdir()
    (planted / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    RankGroup(2).close()
    assert not (tmp_path / "ran").exists()
