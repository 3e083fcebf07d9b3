"""Result files of all benchmarks, read for the page: what was measured, on what, by which command.

Results share an envelope, not a form: `machine`, where there is one `command`, and figures.
`bench serve` keeps its envelope under `helix_mq`, since the rest of the file has vllm's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.result_files import read_object
from helix_mq.errors import ConfigError

MAX_FILES = 500
_ENVELOPE = ("machine", "command", "version")
_FORMER_NAMES = {"slow trucks": "simulator trucks"}


@dataclass(frozen=True, slots=True)
class Result:
    """One file. `kind`: the benchmark that made it, e.g. `serve` or `planner targets`; the file's
    name where that is not said. `figures`: the body without its envelope."""

    name: str
    kind: str
    command: str
    date: str
    machine: str
    versions: str
    figures: Mapping[str, object]


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, and those in folders ending in .json, by name. ConfigError for what
    is not there, for none at all and for more than MAX_FILES."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.glob("*.json"))
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{path}: there is no such file or folder", param="files")
    if not found:
        raise ConfigError("no result files: name some, or a folder that has .json files")
    if len(found) > MAX_FILES:
        raise ConfigError(f"{len(found)} files are more than {MAX_FILES} for one page")
    return list(dict.fromkeys(found))


def read(path: Path) -> Result:
    """ConfigError for what is no result file."""
    body = read_object(path)
    inner = body.get("helix_mq")
    envelope = inner if isinstance(inner, dict) and "machine" in inner else body
    command = envelope.get("command")
    command = command if isinstance(command, str) else ""
    machine = envelope.get("machine")
    machine = machine if isinstance(machine, dict) else {}
    date = machine.get("date", body.get("date", ""))
    return Result(
        name=path.stem,
        kind=_kind(command, body) or path.stem.replace("-", " "),
        command=command,
        date=str(date),
        machine=_machine(machine),
        versions=_versions(machine),
        figures=_figures(body),
    )


def _kind(command: str, body: Mapping[str, object]) -> str:
    """`serve` of `helix-mq bench serve --url ...`, `planner targets` of `python -m bench.planner
    targets`; empty where no benchmark is named."""
    if "output_throughput" in body and "request_throughput" in body:
        return "serve"
    found = re.search(
        r"helix-mq bench ([a-z-]+(?: [a-z]+)?)|-m bench\.([\w.]+(?: [a-z]+)?)", command
    )
    if found is None:
        return ""
    kind = re.sub(r"[_.]", " ", found[1] or found[2])
    return _FORMER_NAMES.get(kind, kind)


def _figures(body: Mapping[str, object]) -> Mapping[str, object]:
    figures = {name: value for name, value in body.items() if name not in _ENVELOPE}
    inner = figures.get("helix_mq")
    if isinstance(inner, dict):
        figures["helix_mq"] = {k: v for k, v in inner.items() if k not in _ENVELOPE}
    return figures


def _machine(machine: Mapping[str, object]) -> str:
    parts = [str(machine[name]) for name in ("gpu", "cpu") if machine.get(name)]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    return ", ".join(parts)


def _versions(machine: Mapping[str, object]) -> str:
    packages = machine.get("packages")
    parts = [f"Python {machine['python']}"] if machine.get("python") else []
    if isinstance(packages, dict):
        parts += [f"{name} {packages[name]}" for name in sorted(packages)]
    return ", ".join(parts)
