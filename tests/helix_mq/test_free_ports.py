"""Ports for processes that bind them a moment later."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from helix_mq import demo
from helix_mq.demo import free_ports

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def bindable(port: int) -> bool:
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
    return True


@pytest.mark.skipif(not RANGE.exists(), reason="this system does not say which ports it gives out")
def test_nobody_gets_them_unasked() -> None:
    lowest = int(RANGE.read_text().split()[0])
    if lowest <= demo._FIRST_PORT:
        pytest.skip(f"this system gives out ports from {lowest} on")
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(demo._FIRST_PORT <= port < lowest and bindable(port) for port in ports)


def test_ports_in_use_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(demo, "_kept_ports", lambda: range(port, port + 1))
        found = free_ports(3)
        assert len(set(found)) == 3
        assert port not in found


def test_where_none_are_kept_the_system_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_kept_ports", lambda: range(0))
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(map(bindable, ports))
