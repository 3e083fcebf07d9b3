"""What would keep an installed service from working, found before it is installed. Pure.

Every finding names what is wrong and what to do. What only the running process can tell is left to
it, and to `helix-mq doctor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from helix_mq.credentials import credential_name
from helix_mq.errors import ConfigError
from helix_mq.services.units import CONFIG_FOLDER, Service

_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What ProtectHome and PrivateTmp keep from a service."""


@dataclass(frozen=True, slots=True)
class FileFound:
    """`readable`: by the service's user, as far as the file's own permissions go. `real`: where it
    is after all links."""

    exists: bool
    readable: bool = True
    real: str = ""


def hidden_text(what: str, path: str, real: str = "") -> str | None:
    """Why a service cannot use `path`, which is `real` after all links; None when it can."""
    for where in (path, real):
        for folder in _HIDDEN:
            if where and PurePosixPath(where).is_relative_to(folder):
                leads = f", which leads to {where}" if where != path else ""
                return (
                    f"{what} = {path}{leads}: a service sees nothing below {folder}: put it "
                    "elsewhere, e.g. below /srv or /opt"
                )
    return None


def check_settings(
    service: Service, values: Mapping[str, Any], files: Mapping[str, FileFound]
) -> list[str]:
    """`values`: the settings, complete; `files`: of each path that path_settings() names."""
    found: list[str] = []
    name = values.get("name")
    if service.kind == "node" and name != service.name:
        found.append(
            f"name = {name} in {service.config}: the service would run it as {service.name}; say "
            f"--name {name}, or change or leave out the name"
        )
    found += _key_findings(service, values, files)
    for what, path in path_settings(values).items():
        if not path.startswith("/"):
            found.append(f"{what} = {path}: a service needs an absolute path")
        elif (text := hidden_text(what, path, files[path].real)) is not None:
            found.append(text)
        elif what == "journal.path":
            if not PurePosixPath(path).is_relative_to(service.state):
                found.append(
                    f"{what} = {path}: the service may write below {service.state} only, e.g. "
                    f"{service.state}/journal.db"
                )
        elif not files[path].exists:
            found.append(f"{what} = {path}: there is no such file")
        elif not files[path].readable:
            found.append(
                f"{what} = {path}: the user {service.user} cannot read it: "
                f"`chgrp {service.user} {path}` and `chmod 640 {path}`"
            )
    return found


def path_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings that name files which the service opens itself, by their dotted names."""
    found = {}
    for what in (
        "model",
        "placement.plan",
        "journal.path",
        "security.allow_file",
        "http.keys_file",
        "http.tls_cert",
        "http.tls_key",
    ):
        value: Any = values
        for part in what.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            found[what] = str(value)
    return found


def _key_findings(
    service: Service, values: Mapping[str, Any], files: Mapping[str, FileFound]
) -> list[str]:
    wanted = (values.get("security") or {}).get("key_file")
    if wanted is None:
        return []
    try:
        name = credential_name(PurePosixPath(str(wanted)))
    except ConfigError as e:
        return [f"security.key_file: {e}"]
    if name != "key":
        return [
            f"security.key_file = {wanted}: a service is handed its key: write "
            f'key_file = "$CREDENTIALS_DIRECTORY/key", and put the file at {service.key}'
        ]
    if not files[service.key].exists:
        return [
            f"{service.key} is missing: `helix-mq keys new {service.instance} --folder "
            f"{CONFIG_FOLDER}` makes it"
        ]
    return []
