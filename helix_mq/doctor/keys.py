"""CURVE keys as the settings name them: there, private, matching, and listed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from helix_mq import keys
from helix_mq.credentials import VARIABLE, credential_name
from helix_mq.doctor.findings import Finding, ok, problem, warning
from helix_mq.doctor.ports import split_endpoint
from helix_mq.errors import ConfigError
from helix_mq.transport.endpoints import is_loopback
from helix_mq.transport.security import check_key

CHECK = "keys"


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """`faults`: what loading a file or a key ended with, in words that name the remedy.

    `public` is this process's own key, `beside` the one in its .pub file. `allowed`: how many an
    allow-list holds, None without one. `open_to`: addresses that other machines reach.
    """

    key_file: str = ""
    public: str = ""
    beside: str = ""
    router_public: str = ""
    allowed: int | None = None
    allow_file: str = ""
    allow_open: bool = False
    insecure: bool = False
    open_to: tuple[str, ...] = ()
    credential: bool = False
    """The key is one that only the service manager hands over, so it was not looked at."""
    faults: tuple[str, ...] = ()


def check_keys(facts: KeyFacts) -> list[Finding]:
    found = [
        problem(CHECK, fault, "this process will not start", "see docs/security.md for its keys")
        for fault in facts.faults
    ]
    if facts.credential:
        found.append(
            warning(
                CHECK,
                f"{facts.key_file} is handed over to the service alone",
                "its key could not be looked at, nor tried on the router",
                "run this as root with --key and the file that LoadCredential= of its unit names",
            )
        )
    elif facts.public:
        found += _own(facts)
    elif not facts.faults:
        found.append(_none(facts))
    if facts.allowed is not None:
        found += _list(facts)
    if facts.insecure:
        found.append(
            warning(
                CHECK,
                "security.insecure is set",
                "whoever reaches the sockets can join, read and inject",
                "make keys (`helix-mq keys new`) unless the network is yours alone, and unset it",
            )
        )
    return found


def _none(facts: KeyFacts) -> Finding:
    if not facts.open_to or facts.insecure:
        return ok(CHECK, "no keys; none are needed on loopback" if not facts.open_to else "no keys")
    return problem(
        CHECK,
        f"no keys, and {', '.join(facts.open_to)} can be reached from other machines",
        "this process will not start",
        "`helix-mq keys new NAME`, then `[security] key_file` (docs/operations.md, Keys)",
    )


def _own(facts: KeyFacts) -> list[Finding]:
    if facts.public == facts.router_public:
        return [
            problem(
                CHECK,
                "security.router_public_key is this node's own public key",
                "no router answers to it: the handshake fails",
                "put the router's there: `helix-mq keys show router` on its machine",
            )
        ]
    if facts.beside and facts.beside != facts.public:
        return [
            warning(
                CHECK,
                f"the .pub file beside {facts.key_file} is of another key",
                "an allow-list made from it refuses this process",
                "delete the .pub file, and allow the key that `helix-mq keys show "
                f"{facts.key_file}` prints",
            )
        ]
    name = f"{facts.key_file}, fingerprint {keys.fingerprint(facts.public)}"
    return [ok(CHECK, f"own key: {name}")]


def _list(facts: KeyFacts) -> list[Finding]:
    found = []
    if facts.allowed == 0:
        found.append(
            warning(
                CHECK,
                f"{facts.allow_file} lists nobody",
                "no node and no client can connect",
                "`helix-mq keys allow NAME PUBLIC-KEY` for each",
            )
        )
    else:
        found.append(ok(CHECK, f"{facts.allow_file} lets {facts.allowed} in"))
    if facts.allow_open:
        found.append(
            problem(
                CHECK,
                f"other users of this machine can change {facts.allow_file}",
                "they can let anybody in",
                f"chmod 644 {facts.allow_file}",
            )
        )
    return found


def collect_keys(
    *,
    key_file: Path | None,
    allow_file: Path | None = None,
    router_public_key: str | None = None,
    insecure: bool = False,
    endpoints: tuple[str, ...] = (),
) -> KeyFacts:
    faults: list[str] = []
    public = beside = router_public = ""
    credential = is_handed_over(key_file)
    allowed: int | None = None
    allow_open = False
    try:
        if key_file is not None and not credential:
            public = keys.load_key(key_file).public
            pub = key_file.with_suffix(".pub")
            if pub != key_file and pub.exists():
                beside = keys.load_public_key(pub)
    except ConfigError as e:
        faults.append(str(e))
    try:
        if router_public_key is not None:
            router_public = check_key(router_public_key, "security.router_public_key")
    except ConfigError as e:
        faults.append(str(e))
    try:
        if allow_file is not None:
            allowed = len(keys.load_allow_list(allow_file))
            allow_open = bool(allow_file.stat().st_mode & 0o022)
    except ConfigError as e:
        faults.append(str(e))
    return KeyFacts(
        key_file=str(key_file or ""),
        public=public,
        beside=beside,
        router_public=router_public,
        allowed=allowed,
        allow_file=str(allow_file or ""),
        allow_open=allow_open,
        insecure=insecure,
        open_to=tuple(e for e in endpoints if _is_open(e)),
        credential=credential,
        faults=tuple(faults),
    )


def is_handed_over(key_file: Path | None) -> bool:
    """Whether only a service has it, and this process is none."""
    if key_file is None or os.environ.get(VARIABLE):
        return False
    try:
        return credential_name(key_file) is not None
    except ConfigError:
        return False


def _is_open(endpoint: str) -> bool:
    parts = split_endpoint(endpoint)
    return parts is not None and not is_loopback(parts[0])
