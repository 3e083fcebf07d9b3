"""What installing or removing a service takes, from what was found on the machine. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from helix_mq.services.units import SYSUSERS_FOLDER, UNIT_FOLDER, Service, sysusers_text, unit_text


@dataclass(frozen=True, slots=True)
class Write:
    """`old`: what the file holds now; None where there is none."""

    path: str
    text: str
    old: str | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    path: str


@dataclass(frozen=True, slots=True)
class Run:
    command: tuple[str, ...]


Step = Write | Remove | Run


@dataclass(frozen=True, slots=True)
class Found:
    """The machine as it is. `others`: further nodes here that use the same unit file."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Texts of those of the service's files that exist."""
    user_exists: bool = False
    enabled: bool = False
    active: bool = False
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """`notes` are for the operator, who gets them whatever becomes of the steps."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


def files_of(service: Service, program: str) -> dict[str, str]:
    """The files that make up the service, by path. Raises ConfigError for an unusable program."""
    return {
        f"{SYSUSERS_FOLDER}/{service.user}.conf": sysusers_text(service.kind),
        f"{UNIT_FOLDER}/{service.file}": unit_text(service.kind, program),
    }


def plan_install(service: Service, program: str, found: Found, *, only_files: bool = False) -> Plan:
    """Steps that are not done yet, in order. `only_files`: for a package, which runs nothing."""
    wanted = files_of(service, program)
    stale = {path for path, text in wanted.items() if found.files.get(path) != text}
    users, unit = wanted
    steps: list[Step] = []
    notes: list[str] = []
    if users in stale:
        steps.append(Write(users, wanted[users], found.files.get(users)))
    if not found.user_exists and not only_files:
        steps.append(Run(("systemd-sysusers", f"{service.user}.conf")))
    if unit in stale:
        steps.append(Write(unit, wanted[unit], found.files.get(unit)))
        if not only_files:
            steps.append(Run(("systemctl", "daemon-reload")))
            if found.active:
                notes.append(f"it runs on as it was until `systemctl restart {service.unit}`")
    if not only_files and not (found.enabled and found.active):
        steps.append(Run(("systemctl", "enable", "--now", service.unit)))
    return Plan(tuple(steps), tuple(notes))


def plan_uninstall(service: Service, found: Found, *, only_files: bool = False) -> Plan:
    """Stops the service and takes its unit away; settings, keys and state stay."""
    steps: list[Step] = []
    if found.enabled or found.active:
        steps.append(Run(("systemctl", "disable", "--now", service.unit)))
    unit = f"{UNIT_FOLDER}/{service.file}"
    notes = []
    if found.others:
        notes.append(f"{unit} stays: {' and '.join(found.others)} run by it")
    else:
        if unit in found.files:
            steps.append(Remove(unit))
            if not only_files:
                steps.append(Run(("systemctl", "daemon-reload")))
        users = f"{SYSUSERS_FOLDER}/{service.user}.conf"
        if users in found.files:
            steps.append(Remove(users))
    notes += [
        f"settings stay: {service.config}, and the key {service.key} where there is one",
        f"state stays: {service.state}; what can be made again: {service.cache}",
    ]
    if not found.others:
        notes.append(f"the user {service.user} stays, who owns it: `userdel {service.user}`")
    return Plan(tuple(steps), tuple(notes))


def step_text(step: Step) -> str:
    """In words, with what changes in a file that is there."""
    match step:
        case Write(path, text, None):
            return f"write {path} ({len(text.splitlines())} lines)"
        case Write(path, text, str(old)):
            changes = difflib.unified_diff(
                old.splitlines(), text.splitlines(), "now", "then", lineterm="", n=0
            )
            return "\n    ".join([f"replace {path}", *changes])
        case Remove(path):
            return f"remove {path}"
        case Run(command):
            return f"run {' '.join(command)}"
        case _:
            raise AssertionError(step)
