"""A plan on disk: TOML with the placement and what is claimed for it.

    name = "single24_llama70b"
    cluster = "clusters/single24.toml"
    num_layers = 80
    method = "blocks"
    objective_tokens_per_s = 2045.6
    [nodes]
    "7" = "0:8"

The `[nodes]` table has the form of a router's `[placement.nodes]`. Read strictly; nothing is
evaluated.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.settings import read_toml
from solver.search_types import PlanResult

_RANGE = re.compile(r"(\d{1,5}):(\d{1,5})", re.ASCII)
_KNOWN = {
    "name",
    "num_layers",
    "method",
    "objective_tokens_per_s",
    "upper_bound_tokens_per_s",
    "cluster",
    "nodes",
}


class PlanFileError(ConfigError):
    """A plan file is not what it should be; `param` is the field."""

    code = "invalid_plan_file"


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What a file says; `claimed_tokens_per_s` is for the verifier to check."""

    name: str
    cluster: Path | None
    """The cluster file it was made for, relative to the plan's folder."""
    placement: Placement
    method: str
    claimed_tokens_per_s: float | None


def write_plan(path: Path, name: str, result: PlanResult, cluster: Path) -> None:
    """Saves a result with what it was made for. ConfigError when the file cannot be written."""
    lines = [
        f"name = {_quoted(name)}",
        f"cluster = {_quoted(str(cluster.resolve()))}",
        f"num_layers = {result.placement.num_layers}",
        f"method = {_quoted(result.method)}",
        f"objective_tokens_per_s = {result.objective_tokens_per_s!r}",
    ]
    if math.isfinite(result.upper_bound_tokens_per_s):
        lines.append(f"upper_bound_tokens_per_s = {result.upper_bound_tokens_per_s!r}")
    lines += ["", "[nodes]"]
    for node in result.placement:
        layers = result.placement.slices[node]
        lines.append(f'{_quoted(node)} = "{layers.first}:{layers.end}"')
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written: {e.strerror}", param="save") from None


def read_plan(path: Path) -> PlanFile:
    """The plan in a file. PlanFileError names what is wrong."""
    data = read_toml(path)
    for field in sorted(set(data) - _KNOWN):
        raise PlanFileError(f"{path}: {field}: there is no such field in a plan", param=field)
    num_layers = _typed(path, data, "num_layers", int)
    nodes = _typed(path, data, "nodes", dict)
    slices = {NodeId(name): _layers(path, name, text) for name, text in sorted(nodes.items())}
    claimed = data.get("objective_tokens_per_s")
    if claimed is not None and not (isinstance(claimed, int | float) and math.isfinite(claimed)):
        raise PlanFileError(
            f"{path}: objective_tokens_per_s = {claimed!r} is not a number",
            param="objective_tokens_per_s",
        )
    try:
        placement = Placement(num_layers, slices)
    except ValueError as e:
        raise PlanFileError(f"{path}: {e}", param="nodes") from None
    return PlanFile(
        name=str(data.get("name", path.stem)),
        cluster=_path(path, data, "cluster"),
        placement=placement,
        method=str(data.get("method", "")),
        claimed_tokens_per_s=float(claimed) if claimed is not None else None,
    )


def _path(path: Path, data: dict[str, Any], field: str) -> Path | None:
    value = data.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise PlanFileError(f"{path}: {field} = {value!r:.40}: expected a path", param=field)
    return path.parent / value


def _layers(path: Path, name: str, text: object) -> LayerRange:
    match = _RANGE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise PlanFileError(
            f'{path}: nodes.{name} = {text!r:.40}: expected "first:end"', param=f"nodes.{name}"
        )
    try:
        return LayerRange(int(match[1]), int(match[2]))
    except ValueError as e:
        raise PlanFileError(f"{path}: nodes.{name}: {e}", param=f"nodes.{name}") from None


def _typed(path: Path, data: dict[str, Any], field: str, kind: type) -> Any:
    value = data.get(field)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanFileError(
            f"{path}: {field} = {value!r:.40}: expected {kind.__name__}", param=field
        )
    return value


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
