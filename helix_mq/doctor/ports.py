"""Whether this process can bind what it is told to, and whether others can reach that."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

import psutil

from helix_mq.doctor.findings import Finding, ok, problem, warning
from helix_mq.transport.endpoints import is_loopback

CHECK = "ports"


@dataclass(frozen=True, slots=True)
class PortFacts:
    """`setting` names where the address comes from. `fault`: an errno of the attempt to bind, 0 if
    that worked. `owner` holds the port now, as far as that can be told."""

    setting: str
    host: str
    port: int
    fault: int = 0
    owner: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True)
class AddressFacts:
    """What others are told to connect to. `advertised` is empty where it is what is bound;
    `remote`: some of them are on other machines."""

    setting: str
    bound: str
    advertise_setting: str
    advertised: str
    remote: bool


def split_endpoint(endpoint: str) -> tuple[str, int] | None:
    """Host and port of `tcp://HOST:PORT`; None for anything else. `*` is port 0, any free one."""
    if not endpoint.startswith("tcp://"):
        return None
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not colon or not (port == "*" or port.isdecimal()):
        return None
    return host.strip("[]"), 0 if port == "*" else int(port)


def is_wildcard(host: str) -> bool:
    return host in ("*", "0.0.0.0", "::")


def check_port(facts: PortFacts) -> Finding:
    where = f"{facts.setting} = {facts.host}:{facts.port}"
    if not facts.fault:
        text = "any free port" if not facts.port else "free"
        return ok(CHECK, f"{where}: {text}")
    if facts.fault == errno.EADDRINUSE:
        if facts.ours:
            return ok(CHECK, f"{where}: held by {facts.owner}, which runs already")
        holder = facts.owner or "a process that cannot be told from here (try as root)"
        return problem(
            CHECK,
            f"{where}: in use by {holder}",
            "this process will not start",
            f"stop that one, or set another port for `{facts.setting}`",
        )
    if facts.fault == errno.EADDRNOTAVAIL:
        return problem(
            CHECK,
            f"{where}: no network interface of this machine has that address",
            "this process will not start",
            f"set `{facts.setting}` to an address that `ip addr` shows, or to 0.0.0.0 and "
            "advertise the outer one",
        )
    if facts.fault in (errno.EACCES, errno.EPERM):
        return problem(
            CHECK,
            f"{where}: this user may not bind it",
            "ports below 1024 are for root",
            f"set a port of 1024 or more for `{facts.setting}`",
        )
    return problem(
        CHECK,
        f"{where}: {os.strerror(facts.fault)}",
        "this process will not start",
        f"check the address in `{facts.setting}`",
    )


def check_address(facts: AddressFacts) -> list[Finding]:
    """Traps of addresses that can be bound and not be reached."""
    told = split_endpoint(facts.advertised or facts.bound)
    if told is None:
        return []
    host = told[0]
    name = facts.advertise_setting if facts.advertised else facts.setting
    if is_wildcard(host):
        return [
            problem(
                CHECK,
                f"{name} = {facts.advertised or facts.bound} is what others are told to connect to",
                "every interface here, themselves there: nobody would reach this process",
                f'set `{facts.advertise_setting} = "tcp://ADDRESS:PORT"` as others see it',
            )
        ]
    if facts.remote and is_loopback(host):
        return [
            problem(
                CHECK,
                f"{name} = {facts.advertised or facts.bound} is loopback, and the cluster is not",
                "other machines are told to connect to themselves",
                f"set `{name}` to an address that they reach",
            )
        ]
    if facts.advertised and told[1] == 0:
        return [
            problem(
                CHECK,
                f"{name} = {facts.advertised} names no port",
                "others cannot know it",
                f"give `{facts.setting}` and `{name}` a fixed port",
            )
        ]
    return []


def collect_port(setting: str, host: str, port: int) -> PortFacts:
    fault = _bind_fault(host, port)
    if fault != errno.EADDRINUSE:
        return PortFacts(setting, host, port, fault)
    owner, ours = owner_of(port)
    return PortFacts(setting, host, port, fault, owner, ours)


def _bind_fault(host: str, port: int) -> int:
    try:
        [(family, kind, number, _, address), *_] = socket.getaddrinfo(
            None if host == "*" else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, number) as s:
            # As libzmq does: what has only just been closed can be bound again.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(address)
            s.listen(1)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as e:
        return e.errno or errno.EINVAL
    return 0


def owner_of(port: int) -> tuple[str, bool]:
    """Who listens on a port, and whether that is a process of ours; empty where it is not told."""
    try:
        found = [
            c.pid
            for c in psutil.net_connections(kind="tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid
        ]
        if not found:
            return "", False
        process = psutil.Process(found[0])
        command = process.cmdline()
        ours = any("helix_mq" in part or "helix-mq" in part for part in command[:4])
        name = " ".join(command[:6])[:120] if ours else process.name()
    except psutil.Error:
        return "", False
    return f"{name} (pid {found[0]})", ours


def check_scheme(setting: str, endpoint: str) -> list[Finding]:
    """An address that is no tcp:// one: ipc:// is for one machine, others are refused at start."""
    if split_endpoint(endpoint) is not None:
        return []
    if endpoint.startswith("ipc://"):
        return [ok(CHECK, f"{setting} = {endpoint}: on this machine only")]
    return [
        warning(
            CHECK,
            f"{setting} = {endpoint} is no tcp://HOST:PORT",
            "it is refused at the start",
            f'set `{setting} = "tcp://HOST:PORT"`',
        )
    ]
