"""examples/two-regions: the real script, real namespaces, a wire of 40 ms; skipped if refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "examples/two-regions/run.sh"
CANNOT = 77
NAMESPACES = ("helix-mq-east", "helix-mq-west")


def environment(result: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "NODES_PER_REGION": "1",
        "REQUESTS": "4",
        "TOKENS": "8",
        "RESULT": str(result),
        **more,
    }


def namespaces() -> set[str]:
    said = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return {line.split()[0] for line in said.stdout.splitlines() if line} & set(NAMESPACES)


@contextmanager
def running(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        ["bash", str(RUN), "--stay", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as script:
        try:
            yield script
        finally:
            if script.poll() is None:
                script.send_signal(signal.SIGTERM)
            script.wait(timeout=240)


def read_until(script: subprocess.Popen[str], word: str) -> list[str]:
    """The lines up to the one with `word`; skips where this machine refuses."""
    assert script.stdout is not None
    lines = []
    for line in script.stdout:
        lines.append(line)
        if word in line:
            return lines
    if script.wait() == CANNOT:
        pytest.skip(lines[-1].strip())
    raise AssertionError("".join(lines))


@pytest.mark.alone
def test_two_regions_serve_and_find_out_what_lies_between_them(
    tiny_folder: Path, tmp_path: Path
) -> None:
    result = tmp_path / "result.json"
    # One that is killed without a word leaves its namespaces and processes to the next.
    with running(tiny_folder, environment(result)) as killed:
        read_until(killed, "between the regions")
        assert namespaces() == set(NAMESPACES)
        killed.kill()
    with running(tiny_folder, environment(result)) as script:
        lines = read_until(script, "stays up")
        found = json.loads(result.read_text())
        second = subprocess.run(
            ["bash", str(RUN)], env=environment(result), capture_output=True, text=True, check=False
        )
    assert second.returncode == CANNOT
    assert "another run of it is going on" in second.stderr
    assert not namespaces(), "taken down"
    assert not Path("/run/helix-mq-two-regions").exists()

    assert found["nodes"] == {"east-1": "ready 0-2", "west-1": "ready 3-5"}
    assert found["tokens"] == 4 * 8
    assert found["tokens_per_s"] > 0
    across = [link for link in found["links"] if link["crosses"]]
    assert {(link["sender"], link["receiver"]) for link in across} == {
        ("@router", "west-1"),
        ("west-1", "@router"),
        ("east-1", "west-1"),
        ("west-1", "east-1"),
    }
    for link in across:
        assert 0.040 <= link["round_trip_s"] < 0.060, link
        assert 0 < link["bytes_per_s"] < 1.3 * 12.5e6, link
    # A busy machine carries no 100 Mbit/s on this wire; TCP's slow start alone would be a tenth.
    assert max(link["bytes_per_s"] for link in across) > 0.25 * 12.5e6
    assert any("placement" in line for line in lines)


def test_a_machine_that_cannot_is_told_why(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    unprivileged = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(
        ["bash", str(RUN)], env=unprivileged, capture_output=True, text=True, check=False
    )
    assert said.returncode == CANNOT
    assert "need root" in said.stderr
    unknown = subprocess.run(["bash", str(RUN), "--what"], capture_output=True, check=False)
    assert unknown.returncode == 2
