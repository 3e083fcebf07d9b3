"""Runs a command under what a unit file allows it: system calls, address families, no memory that
is writable and executable, no new privileges.

    python tests/deploy/confined.py UNIT COMMAND ...

The kernel enforces it, as it does for systemd: the filter is made of the very sets that
`systemd-analyze syscall-filter` prints. What needs a service manager (users, file systems, devices)
is not done here.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

ALLOW = 0x7FFF0000
DENY = 0x00050000 | errno.EPERM
NO_FAMILY = 0x00050000 | errno.EAFNOSUPPORT
PR_SET_MDWE, PR_SET_NO_NEW_PRIVS = 65, 38
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}


def can_confine() -> bool:
    """Whether this machine has what it takes."""
    return bool(shutil.which("systemd-analyze")) and bool(ctypes.util.find_library("seccomp"))


class Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def settings_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def calls_of(names: str) -> set[str]:
    """System calls of sets like `@system-service`, sets within sets included."""
    found: set[str] = set()
    for name in names.split():
        if not name.startswith("@"):
            found.add(name)
            continue
        printed = subprocess.run(
            ["systemd-analyze", "--no-pager", "syscall-filter", name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        lines = (line.strip() for line in printed.splitlines()[1:])
        found |= calls_of(" ".join(x for x in lines if x and not x.startswith("#")))
    return found


def allowed_calls(filters: list[str]) -> set[str]:
    """As systemd reads them: the first line allows, those with ~ take away."""
    calls: set[str] = set()
    for text in filters:
        if text.startswith("~"):
            calls -= calls_of(text[1:])
        else:
            calls |= calls_of(text)
    # The default set is always allowed.
    return calls | calls_of("@default")


def confine(unit: str) -> None:
    """This process and its children, for ever."""
    given = settings_of(unit)
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    calls = allowed_calls(given["SystemCallFilter"])
    (families,) = given["RestrictAddressFamilies"]
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    _refuse_families(seccomp, [FAMILIES[name] for name in families.split()])
    if given.get("MemoryDenyWriteExecute") == ["yes"]:
        failed = libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)
        # Linux before 6.3 knows no such thing.
        if failed and ctypes.get_errno() != errno.EINVAL:
            raise OSError(ctypes.get_errno(), "PR_SET_MDWE")
    # Last: it lets nobody add filters.
    rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(DENY)))
    for call in sorted(calls):
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        # Sets name calls of other processors, too.
        if number >= 0 and seccomp.seccomp_rule_add(rules, ctypes.c_uint32(ALLOW), number, 0):
            raise OSError(f"no rule for {call}")
    if seccomp.seccomp_load(rules):
        raise OSError("the filter of system calls was not taken")


def _refuse_families(seccomp: ctypes.CDLL, families: list[int]) -> None:
    """A filter of its own: of several the kernel takes the strictest answer."""
    rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(ALLOW)))
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in range(48):
        if family not in families:
            # 4 is SCMP_CMP_EQ.
            wanted = (Compare * 1)(Compare(0, 4, family, 0))
            if seccomp.seccomp_rule_add_array(rules, ctypes.c_uint32(NO_FAMILY), number, 1, wanted):
                raise OSError(f"no rule for address family {family}")
    if seccomp.seccomp_load(rules):
        raise OSError("the filter of address families was not taken")


if __name__ == "__main__":
    confine(Path(sys.argv[1]).read_text())
    os.execvp(sys.argv[2], sys.argv[2:])
