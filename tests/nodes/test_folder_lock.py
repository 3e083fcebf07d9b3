"""A lock between processes: one holds it, it comes back whatever happens, no wait is for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nodes.folder_lock import alone

HOLDER = """
import sys
from pathlib import Path
from nodes.folder_lock import alone
with alone(Path(sys.argv[1]), 240.0) as held:
    print(held, flush=True)
    sys.stdin.readline()
"""


def test_another_process_waits_until_the_holder_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "x.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with alone(file, 0.0) as held:
            assert not held
        holder.kill()
        with alone(file, 240.0) as held:
            assert held


def test_it_is_given_back_and_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with alone(tmp_path / "x.lock", 240.0) as held:
            assert held
            with alone(tmp_path / "x.lock", 0.0) as again:
                assert not again


def test_where_nothing_can_be_written_there_is_none(tmp_path: Path) -> None:
    with alone(tmp_path / "no" / "x.lock", 240.0) as held:
        assert not held
