"""The unit files: deploy/ holds what is installed, systemd takes it, and it is locked up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helix_mq.errors import ConfigError
from helix_mq.services.units import Kind, Service, sysusers_text, unit_text
from tests.deploy.confined import allowed_calls, can_confine, settings_of

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
KINDS: list[Kind] = ["router", "node"]
EXPOSURE = 25
"""Of 100. systemd calls up to 50 OK; these are at 14 and 18."""

analysed = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Units with a program that exists, under names that systemd can load."""
    folder = tmp_path_factory.mktemp("units")
    program = shutil.which("true") or "/bin/true"
    paths = {}
    for kind in KINDS:
        paths[kind] = folder / Service(kind, "alpha").unit
        paths[kind].write_text(unit_text(kind, program))
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_the_repository_holds_what_is_installed(kind: Kind) -> None:
    assert (FOLDER / Service(kind).file).read_text() == unit_text(kind)
    assert (FOLDER / f"{Service(kind).user}.conf").read_text() == sysusers_text(kind)


@analysed
@pytest.mark.parametrize("kind", KINDS)
def test_systemd_takes_the_unit(kind: Kind, installed: dict[str, Path]) -> None:
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run(
        [*command, str(installed[kind])], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@analysed
@pytest.mark.parametrize("kind", KINDS)
def test_little_is_exposed(kind: Kind, installed: dict[str, Path]) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    done = subprocess.run(
        [*command, f"--threshold={EXPOSURE}", str(installed[kind])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]
    assert " OK " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_issue_asks_for_is_there(kind: Kind) -> None:
    found = settings_of(unit_text(kind))
    assert found["Type"] == ["notify"]
    assert int(found["WatchdogSec"][0]) >= 10
    assert found["Restart"] == ["on-failure"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["LoadCredential"][0].startswith("key:/etc/helix_mq/")
    # GPU kernels are compiled while a node runs.
    assert ("MemoryDenyWriteExecute" in found) == (kind == "router")
    assert any("nvidia" in d for d in found.get("DeviceAllow", [])) == (kind == "node")


@pytest.mark.skipif(not can_confine(), reason="needs systemd-analyze and libseccomp")
def test_the_system_calls_that_matter_are_denied() -> None:
    calls = allowed_calls(settings_of(unit_text("router"))["SystemCallFilter"])
    assert {"read", "socket", "clone", "futex"} <= calls
    assert not {"mount", "ptrace", "bpf", "reboot", "init_module", "chown", "setuid"} & calls


@pytest.mark.skipif(not can_confine(), reason="needs systemd-analyze and libseccomp")
def test_zeromq_would_die_without_netlink(tmp_path: Path) -> None:
    """Why the units allow it: without, this ends by SIGABRT."""
    text = unit_text("router")
    bind = "import zmq; zmq.Context().socket(zmq.DEALER).bind('tcp://127.0.0.1:*')"
    ends = []
    for name, unit in {"with": text, "without": text.replace(" AF_NETLINK", "")}.items():
        path = tmp_path / f"{name}.service"
        path.write_text(unit)
        confined = [sys.executable, str(Path(__file__).with_name("confined.py")), str(path)]
        done = subprocess.run(
            [*confined, sys.executable, "-c", bind + "; import os; os._exit(0)"],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        ends.append(done.returncode)
    assert ends == [0, -6]


@pytest.mark.parametrize(
    "program", ["helix-mq", "/opt/my app/helix-mq", "/opt/50%/helix-mq", '/a"']
)
def test_a_program_that_systemd_cannot_name_is_refused(program: str) -> None:
    with pytest.raises(ConfigError, match="absolute path without spaces"):
        unit_text("router", program)
