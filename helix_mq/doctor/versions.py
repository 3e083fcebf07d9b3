"""Python, this package, and the ZeroMQ library below it."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

import helix_mq
from helix_mq.doctor.findings import Finding, ok, problem, warning

CHECK = "versions"
LEAST_PYTHON = (3, 11)
SAFE_LIBZMQ = (4, 3, 3)
"""Before it, connections that never finish a CURVE handshake fill memory (CVE-2020-15166)."""


@dataclass(frozen=True, slots=True)
class VersionFacts:
    helix_mq: str
    python: tuple[int, int, int]
    system: str
    pyzmq: str
    libzmq: tuple[int, int, int]
    curve: bool


def check_versions(facts: VersionFacts) -> list[Finding]:
    found = [
        ok(CHECK, f"helix_mq {facts.helix_mq} on Python {_dotted(facts.python)}, {facts.system}")
    ]
    if facts.python[:2] < LEAST_PYTHON:
        found[0] = problem(
            CHECK,
            f"Python {_dotted(facts.python)}",
            f"helix_mq needs Python {_dotted(LEAST_PYTHON)} or newer",
            f"make the virtual environment with python{_dotted(LEAST_PYTHON)}",
        )
    zmq = f"pyzmq {facts.pyzmq} with libzmq {_dotted(facts.libzmq)}"
    if not facts.curve:
        found.append(
            problem(
                CHECK,
                f"{zmq}, built without CURVE",
                "no socket can have keys, so nothing opens but on loopback",
                "install the wheel, which has it: pip install --force-reinstall "
                "--only-binary :all: pyzmq",
            )
        )
    elif facts.libzmq < SAFE_LIBZMQ:
        found.append(
            warning(
                CHECK,
                f"{zmq}, older than {_dotted(SAFE_LIBZMQ)}",
                "whoever reaches the port can fill memory without a key (CVE-2020-15166)",
                "pip install --upgrade pyzmq",
            )
        )
    else:
        found.append(ok(CHECK, f"{zmq} and CURVE"))
    return found


def collect_versions() -> VersionFacts:
    import zmq

    major, minor, patch = zmq.zmq_version_info()
    return VersionFacts(
        helix_mq=helix_mq.__version__,
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        pyzmq=zmq.__version__,
        libzmq=(int(major), int(minor), int(patch)),
        curve=bool(zmq.has("curve")),
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
