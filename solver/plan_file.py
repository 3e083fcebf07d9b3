"""A plan on disk: TOML with the placement and what is claimed for it.

    name = "single24_llama70b"
    cluster = "clusters/single24.toml"           # relative to the plan's folder
    model = "llama-70b/config.json"              # for clusters that describe machines only
    add = ["L4@eu-west=2"]                       # nodes that the cluster file does not have yet
    remove = ["t4-7"]
    input_tokens = 750.0                         # mean lengths that it was made for; of old plans
    output_tokens = 240.0                        # they are not known, and taken to be these
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.settings import read_toml
from solver.explain_what_if import parse_addition
from solver.inputs import Source
from solver.objective import Workload
from solver.search_types import PlanResult

_RANGE = re.compile(r"(\d{1,5}):(\d{1,5})", re.ASCII)
_KNOWN = {
    "name",
    "num_layers",
    "method",
    "objective_tokens_per_s",
    "upper_bound_tokens_per_s",
    "cluster",
    "model",
    "add",
    "remove",
    "input_tokens",
    "output_tokens",
    "nodes",
}


class PlanFileError(ConfigError):
    """A plan file is not what it should be; `param` is the field."""

    code = "invalid_plan_file"


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What a file says; `claimed_tokens_per_s` is for the verifier to check."""

    name: str
    source: Source | None
    """The cluster it was made for; None where the file names none."""
    placement: Placement
    method: str
    claimed_tokens_per_s: float | None
    upper_bound_tokens_per_s: float | None = None
    workload: Workload | None = None
    """The lengths it was made for; the source's, where there is one. None where they are unknown.
    """


def plan_of(name: str, result: PlanResult, source: Source) -> PlanFile:
    """A result as it is saved, with what it was made for."""
    bound = result.upper_bound_tokens_per_s
    return PlanFile(
        name=name,
        source=source,
        placement=result.placement,
        method=result.method,
        claimed_tokens_per_s=result.objective_tokens_per_s,
        upper_bound_tokens_per_s=bound if math.isfinite(bound) else None,
        workload=source.workload,
    )


def write_plan(path: Path, plan: PlanFile) -> None:
    """Saves a plan. ConfigError when the file cannot be written."""
    lines = [f"name = {_quoted(plan.name)}", *_source_lines(path, plan.source)]
    if plan.workload is not None:
        lines.append(f"input_tokens = {plan.workload.input_tokens!r}")
        lines.append(f"output_tokens = {plan.workload.output_tokens!r}")
    lines += [f"num_layers = {plan.placement.num_layers}", f"method = {_quoted(plan.method)}"]
    if plan.claimed_tokens_per_s is not None:
        lines.append(f"objective_tokens_per_s = {plan.claimed_tokens_per_s!r}")
    if plan.upper_bound_tokens_per_s is not None:
        lines.append(f"upper_bound_tokens_per_s = {plan.upper_bound_tokens_per_s!r}")
    lines += ["", "[nodes]"]
    for node in plan.placement:
        layers = plan.placement.slices[node]
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
    try:
        placement = Placement(num_layers, slices)
    except ValueError as e:
        raise PlanFileError(f"{path}: {e}", param="nodes") from None
    workload = _workload(path, data)
    return PlanFile(
        name=str(data.get("name", path.stem)),
        source=_source(path, data, workload),
        placement=placement,
        method=str(data.get("method", "")),
        claimed_tokens_per_s=_figure(path, data, "objective_tokens_per_s"),
        upper_bound_tokens_per_s=_figure(path, data, "upper_bound_tokens_per_s"),
        workload=workload,
    )


def _figure(path: Path, data: dict[str, Any], field: str) -> float | None:
    value = data.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PlanFileError(f"{path}: {field} = {value!r:.40} is not a number", param=field)
    return float(value)


def _source_lines(plan: Path, source: Source | None) -> list[str]:
    if source is None:
        return []
    lines = [f"cluster = {_quoted(_from(plan, source.cluster))}"]
    if source.model is not None:
        lines.append(f"model = {_quoted(_from(plan, source.model))}")
    return [
        *lines,
        *_list("add", [str(addition) for addition in source.add]),
        *_list("remove", source.remove),
    ]


def _workload(path: Path, data: dict[str, Any]) -> Workload | None:
    lengths = [_figure(path, data, field) for field in ("input_tokens", "output_tokens")]
    if lengths[0] is None and lengths[1] is None:
        return None
    if lengths[0] is None or lengths[1] is None:
        missing = "input_tokens" if lengths[0] is None else "output_tokens"
        raise PlanFileError(
            f"{path}: {missing} is missing: give the mean lengths of prompts and of answers, or "
            "neither of them",
            param=missing,
        )
    try:
        return Workload(lengths[0], lengths[1])
    except ConfigError as e:
        raise PlanFileError(f"{path}: {e.message}", param=e.param) from None


def _source(path: Path, data: dict[str, Any], workload: Workload | None) -> Source | None:
    cluster = _path(path, data, "cluster")
    if cluster is None:
        return None
    return Source(
        cluster=cluster,
        model=_path(path, data, "model"),
        add=tuple(parse_addition(text) for text in _texts(path, data, "add")),
        remove=tuple(NodeId(text) for text in _texts(path, data, "remove")),
        workload=workload,
    )


def _texts(path: Path, data: dict[str, Any], field: str) -> list[str]:
    value = data.get(field, [])
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise PlanFileError(
            f"{path}: {field} = {value!r:.40}: expected a list of texts", param=field
        )
    return value


def _list(field: str, texts: Sequence[str]) -> list[str]:
    return [f"{field} = [{', '.join(map(_quoted, texts))}]"] if texts else []


def _from(plan: Path, path: Path) -> str:
    """As seen from the plan's folder where it lies within, so that both can move together."""
    folder, path = plan.resolve().parent, path.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


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
