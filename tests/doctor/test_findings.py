"""Every finding of `helix-mq doctor` that facts can provoke, and how findings are shown."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import pytest

from helix_mq.doctor import Finding, Level, ok, problem, warning
from helix_mq.doctor.clock import ClockFacts, check_clock, offset
from helix_mq.doctor.disk import DiskFacts, check_disk
from helix_mq.doctor.findings import as_data, as_lines, exit_status
from helix_mq.doctor.keys import KeyFacts, check_keys
from helix_mq.doctor.limits import LimitFacts, check_limits
from helix_mq.doctor.model import ModelFacts, check_model
from helix_mq.doctor.ports import AddressFacts, PortFacts, check_address, check_port, check_scheme
from helix_mq.doctor.reach import ReachFacts, check_reach
from helix_mq.doctor.router_http import RouterHttpFacts, check_router_http
from helix_mq.doctor.versions import VersionFacts, check_versions
from helix_mq.transport.security import KeyPair
from nodes.doctor_device import (
    AttentionFacts,
    DeviceFacts,
    Gpu,
    MemoryFacts,
    check_attention,
    check_device,
    check_memory,
)
from router.doctor import check_http_door, check_journal

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM
GIB = 1 << 30
VERSIONS = VersionFacts("0.1.0", (3, 12, 1), "Linux", "27.0", (4, 3, 5), True)
LIMITS = LimitFacts(65_536, 65_536, None, GIB)
DISK = DiskFacts("journal", "/var/lib/helix-mq", True, 10 * GIB, GIB, "`[journal] path`")
PUBLIC, OTHER = KeyPair.new().public, KeyPair.new().public
KEYS = KeyFacts("keys/a.key", PUBLIC, PUBLIC, OTHER)
LIST = replace(KEYS, allow_file="keys/allow.toml", allowed=3)
T4 = Gpu("Tesla T4", 15 * GIB, 16 * GIB, (7, 5))
L4 = Gpu("NVIDIA L4", 22 * GIB, 24 * GIB, (8, 9))
CUDA = DeviceFacts("2.6.0", "12.6", True, "", "550.54", "", (L4,), "2.8.1", "")
HTTP = RouterHttpFacts("http://r:8000", True, "", 200)


def the(findings: list[Finding], level: Level) -> Finding:
    """The one finding of this level, which is the worst."""
    (found,) = [f for f in findings if f.level is level]
    assert not any(f.level is PROBLEM for f in findings if f is not found)
    return found


def fine(findings: list[Finding]) -> bool:
    return bool(findings) and all(f.level is OK for f in findings)


CASES: list[tuple[list[Finding], Level, str]] = [
    (check_versions(replace(VERSIONS, python=(3, 10, 4))), PROBLEM, "Python 3.10.4"),
    (check_versions(replace(VERSIONS, curve=False)), PROBLEM, "without CURVE"),
    (check_versions(replace(VERSIONS, libzmq=(4, 3, 2))), WARNING, "older than 4.3.3"),
    (check_limits(replace(LIMITS, files_soft=1024)), WARNING, "open files: 1024"),
    (check_limits(replace(LIMITS, files_soft=64)), PROBLEM, "open files: 64"),
    (check_limits(replace(LIMITS, locked_bytes=4096)), WARNING, "locked memory"),
    (check_limits(replace(LIMITS, shared_free_bytes=1 << 20)), WARNING, "shared memory: 1 MiB"),
    (check_limits(replace(LIMITS, shared_free_bytes=None)), WARNING, "no /dev/shm"),
    ([check_disk(replace(DISK, writable=False))], PROBLEM, "may not write"),
    ([check_disk(replace(DISK, free_bytes=GIB // 2))], WARNING, "0.5 GiB free"),
    (check_keys(KeyFacts(faults=("a.key: mode 0644: chmod",))), PROBLEM, "mode 0644"),
    (check_keys(KeyFacts(open_to=("tcp://10.0.0.1:1",))), PROBLEM, "no keys, and tcp://10.0.0.1"),
    (check_keys(KeyFacts(open_to=("x",), insecure=True)), WARNING, "insecure"),
    (check_keys(KeyFacts("$C/key", credential=True)), WARNING, "to the service alone"),
    (check_keys(replace(KEYS, router_public=PUBLIC)), PROBLEM, "this node's own public key"),
    (check_keys(replace(KEYS, beside=OTHER)), WARNING, "of another key"),
    (check_keys(replace(LIST, allowed=0)), WARNING, "lists nobody"),
    (check_keys(replace(LIST, allow_open=True)), PROBLEM, "can change keys/allow.toml"),
    (check_clock(ClockFacts(synchronised=False)), WARNING, "not synchronised"),
    (check_clock(ClockFacts(5.0, 0.5, True)), WARNING, "5.0 s ahead of"),
    (check_clock(ClockFacts(-45.0, 0.5, True)), PROBLEM, "45.0 s behind"),
    (
        [check_port(PortFacts("listen", "h", 1, errno.EADDRINUSE, "nginx (pid 7)"))],
        PROBLEM,
        "nginx",
    ),
    ([check_port(PortFacts("listen", "h", 1, errno.EADDRINUSE))], PROBLEM, "cannot be told"),
    ([check_port(PortFacts("listen", "h", 1, errno.EADDRNOTAVAIL))], PROBLEM, "no network interf"),
    ([check_port(PortFacts("listen", "h", 80, errno.EACCES))], PROBLEM, "may not bind"),
    ([check_port(PortFacts("listen", "h", 1, errno.EMFILE))], PROBLEM, "Too many open files"),
    (check_scheme("listen", "udp://x:1"), WARNING, "no tcp://HOST:PORT"),
    (
        check_address(AddressFacts("listen", "tcp://0.0.0.0:7110", "advertise", "", True)),
        PROBLEM,
        "told to connect to",
    ),
    (
        check_address(AddressFacts("listen", "tcp://127.0.0.1:0", "advertise", "", True)),
        PROBLEM,
        "is loopback",
    ),
    (
        check_address(AddressFacts("listen", "tcp://*:0", "advertise", "tcp://10.0.0.1:0", True)),
        PROBLEM,
        "names no port",
    ),
    ([check_reach(ReachFacts("r", "tcp://h:1", 3, "no answer for 3 s"))], PROBLEM, "no answer"),
    ([check_reach(ReachFacts("r", "tcp://h:1", 0, "connection refused"))], PROBLEM, "refused"),
    ([check_reach(ReachFacts("r", "tcp://h:1", 0, "the name is not known"))], PROBLEM, "name"),
    ([check_reach(ReachFacts("p", "tcp://h:1", 0, "refused", optional=True))], WARNING, "refused"),
    ([check_reach(ReachFacts("r", "tcp://h:1", 0, "", "not on the allow-list"))], PROBLEM, "allow"),
    (
        [check_reach(ReachFacts("r", "tcp://h:1", refused="one side uses keys", plain=True))],
        PROBLEM,
        "one side uses keys",
    ),
    ([check_reach(ReachFacts("r", "tcp://h:1", 0.4))], WARNING, "400 ms"),
    ([check_router_http(replace(HTTP, fault="refused"))], WARNING, "refused"),
    (
        [check_router_http(replace(HTTP, status=503, reason="layers 0-2 are on no live node"))],
        WARNING,
        "layers 0-2",
    ),
    ([check_router_http(replace(HTTP, status=404))], WARNING, "status 404"),
    ([check_model(ModelFacts("m", fault="no config.json"))], PROBLEM, "no config.json"),
    ([check_model(ModelFacts("m", fault="layer 3", incomplete=True))], PROBLEM, "layer 3"),
    (check_device(replace(CUDA, driver_fault="mismatch")), PROBLEM, "mismatch"),
    (check_device(replace(CUDA, cuda_build="", cuda_works=False)), PROBLEM, "without CUDA"),
    (
        check_device(replace(CUDA, cuda_works=False, torch_said="driver too old")),
        PROBLEM,
        "driver too old",
    ),
    (check_device(replace(CUDA, gpus=(replace(L4, free_bytes=GIB),))), WARNING, "1.0 of 24.0 GiB"),
    (check_device(replace(CUDA, flash_attn="", flash_fault="no module")), WARNING, "no module"),
    (check_memory(MemoryFacts("cuda:3", device_fault="no such device")), PROBLEM, "no such"),
    (check_memory(MemoryFacts("cuda:0", GIB, 2 * GIB)), PROBLEM, "memory = 2.0 GiB, 1.0 GiB"),
    (check_attention(AttentionFacts(True, 64, fault="no attention")), PROBLEM, "no attention"),
    (
        check_attention(AttentionFacts(True, 64, "torch_varlen", "PyTorch's")),
        WARNING,
        "heads of 64",
    ),
    (check_http_door("0.0.0.0", False), WARNING, "asks nobody for a key"),
    (check_journal(None, 0), WARNING, "no journal"),
]


@pytest.mark.parametrize(("findings", "level", "words"), CASES, ids=lambda c: str(c)[:40])
def test_each_fault_is_found_explained_and_has_a_remedy(
    findings: list[Finding], level: Level, words: str
) -> None:
    found = the(findings, level)
    assert words in found.text
    assert found.meaning
    assert found.remedy


@pytest.mark.parametrize(
    "findings",
    [
        check_versions(VERSIONS),
        check_limits(LIMITS),
        check_limits(replace(LIMITS, files_soft=None)),
        [check_disk(DISK)],
        check_keys(KeyFacts()),
        check_keys(KEYS),
        check_keys(LIST),
        check_clock(ClockFacts(0.2, 0.5, True)),
        check_clock(ClockFacts(1.5, 0.5, None)),
        [check_port(PortFacts("http", "127.0.0.1", 8000))],
        [check_port(PortFacts("http", "h", 1, errno.EADDRINUSE, "helix-mq router (pid 3)", True))],
        check_scheme("control", "ipc:///run/helix"),
        [check_reach(ReachFacts("r", "tcp://h:1", 0.04))],
        [check_router_http(HTTP)],
        [check_model(ModelFacts("m", "llama"))],
        check_device(DeviceFacts("2.6.0+cpu")),
        check_device(CUDA),
        check_device(replace(CUDA, gpus=(T4,), flash_attn="", flash_fault="no module")),
        check_memory(MemoryFacts("cpu", 4 * GIB, GIB)),
        check_memory(MemoryFacts("cpu", 4 * GIB)),
        check_attention(AttentionFacts(True, 64, "flash_attn_2", "FlashAttention 2")),
        check_attention(AttentionFacts(False, 64, "cpu", "CPU kernels", wants_flash=False)),
    ],
)
def test_nothing_is_said_against_what_is_right(findings: list[Finding]) -> None:
    assert fine(findings)


def test_addresses_that_others_reach_are_no_finding() -> None:
    assert not check_address(AddressFacts("listen", "tcp://10.0.0.2:7", "advertise", "", True))
    assert not check_address(AddressFacts("listen", "tcp://127.0.0.1:0", "advertise", "", False))
    assert not check_address(
        AddressFacts("listen", "tcp://0.0.0.0:7", "advertise", "tcp://10.0.0.2:7", True)
    )
    assert not check_http_door("127.0.0.1", False)


def test_a_date_header_is_compared_to_half_a_second() -> None:
    ahead_s, within_s = offset("Sat, 21 Nov 2026 15:00:00 GMT", 1795273210.0, 1795273210.2) or (
        0,
        0,
    )
    assert ahead_s == pytest.approx(1795273210.1 - 1795273200.5)
    assert within_s == pytest.approx(0.6)
    assert offset("", 0, 0) is None
    assert offset("yesterday", 0, 0) is None


def test_the_screen_the_data_and_the_exit_status() -> None:
    found = [ok("ports", "free"), warning("disk", "full", "is refused", "make room")]
    assert exit_status(found) == 0
    assert as_lines(found) == [
        "OK       ports  free",
        "warning  disk   full",
        "                means: is refused",
        "                do:    make room",
        "0 problems, 1 warning",
    ]
    bad = [*found, problem("keys", "none", "no start", "make some")]
    assert exit_status(bad) == 1
    data = json.loads(json.dumps(as_data(bad)))
    assert (data["ok"], data["problems"], data["warnings"]) == (False, 1, 1)
    assert data["findings"][2]["remedy"] == "make some"
    assert as_lines(found[:1])[-1] == "nothing is wrong"
