"""From the machine as it is and the settings it has to a plan, or to reasons against one."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from helix_mq.errors import ConfigError
from helix_mq.services.checks import check_settings, hidden_text, path_settings
from helix_mq.services.host import Machine, this_program
from helix_mq.services.plan import Plan, files_of, plan_install, plan_uninstall
from helix_mq.services.units import DEFAULT_PROGRAM, Service
from helix_mq.settings import load, read_toml

GROUP = "helix_mq.settings"
"""Packages announce the settings of their process here; the core imports none of them."""


def prepare(
    service: Service,
    machine: Machine,
    program: str | None = None,
    *,
    uninstall: bool = False,
    only_files: bool = False,
) -> tuple[Plan, list[str]]:
    """The steps, and what speaks against taking them.

    `program`: the helix-mq to start, by default the one that runs now; for a package
    (`only_files`), the usual one.
    """
    started = program or (DEFAULT_PROGRAM if only_files else this_program())
    files = files_of(service, started)
    reasons = [] if only_files else [text for text in (machine.no_systemd(),) if text]
    found = machine.look(service, files, only_files=only_files)
    if uninstall:
        return plan_uninstall(service, found, only_files=only_files), reasons
    if not only_files:
        reasons += _program_findings(machine, started)
        reasons += _settings_findings(service, machine)
    return plan_install(service, started, found, only_files=only_files), reasons


def _program_findings(machine: Machine, program: str) -> list[str]:
    if (text := hidden_text("the program", program)) is not None:
        return [text]
    if not os.access(machine.path(program), os.X_OK):
        return [f"{program} is no program: name the helix-mq to start with --program"]
    text = hidden_text("the Python of the program", program, machine.interpreter(program))
    return [text] if text is not None else []


def _settings_findings(service: Service, machine: Machine) -> list[str]:
    points = {p.name: p for p in entry_points(group=GROUP)}
    config = machine.path(service.config)
    if not config.is_file():
        return [f"{service.config} is missing: docs/services.md has one to begin with"]
    given: dict[str, Any] = {"name": service.name} if service.kind == "node" else {}
    try:
        settings = load(points[service.kind].load(), config, _absent(given, config))
    except ConfigError as e:
        return [str(e)]
    values = settings.model_dump()
    paths = {service.config, service.key, *path_settings(values).values()}
    files = {path: machine.file(path, service.user) for path in paths if path.startswith("/")}
    reasons = check_settings(service, values, files)
    if not files[service.config].readable:
        reasons.append(
            f"{service.config}: the user {service.user} cannot read it: `chmod 644` the file, and "
            "`chmod 755` its folder"
        )
    return reasons


def _absent(given: dict[str, Any], config: Path) -> dict[str, Any]:
    """Those of `given` that the file does not say itself."""
    said = read_toml(config)
    return {name: value for name, value in given.items() if name not in said}
