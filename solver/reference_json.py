"""Reads the published system's clusters (JSON extraction) into Problems and placements.

The files are data to compare with: measured tables, links, published placements. Bandwidths act
as bytes/s there, and are taken so. Nothing is evaluated; every field is checked, errors name it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.objective import Points, StepTimes
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode

MAX_FILE_BYTES = 64 * 2**20
MAX_WHOLE = 2**53
"""Beyond this a float, which all arithmetic is done in, is not exact."""
LOCAL_LATENCY_S = 0.01
"""Within its regions the generator draws 1 ms, between them at least 40 ms."""


class ReferenceFileError(ConfigError):
    """A reference cluster file is not what it should be; `param` is the field."""

    code = "invalid_reference_file"


@dataclass(frozen=True, slots=True)
class PublishedPlacement:
    """A placement the artifact ships. `max_flow_tokens_per_s` is its simulator's figure.

    `links` are the pairs its simulator uses where they are listed (some methods use few links);
    None means every link along which layers fit.
    """

    name: str
    placement: Placement
    max_flow_tokens_per_s: float | None
    links: frozenset[tuple[NodeId, NodeId]] | None


@dataclass(frozen=True, slots=True)
class ReferenceCluster:
    problem: Problem
    published: Mapping[str, PublishedPlacement]


def read_reference_cluster(path: Path, *, simulator_sizes: bool = True) -> ReferenceCluster:
    """A cluster file as a Problem, and the placements published for it.

    `simulator_sizes`: between nodes a token carries its activation and its own two bytes, as in the
    artifact's simulator; False leaves the two bytes out, as its MILP does. ReferenceFileError if
    the file is missing, too large, not JSON, or a field is absent or of the wrong kind.
    """
    data = _load(path)
    if "nodes" not in data or "links" not in data:
        raise ReferenceFileError(
            f"{path}: not a cluster: there are no nodes and links in it", param="file"
        )
    model = _table(data, "model")
    layers = _whole(model, "num_layers", "model")
    token_bytes = _whole(model, "token_size", "model")
    activation_bytes = _whole(model, "activation_size", "model")
    problem = Problem(
        name=_text(data, "name", "file"),
        num_layers=layers,
        token_bytes=token_bytes,
        activation_bytes=activation_bytes + (token_bytes if simulator_sizes else 0),
        nodes=_nodes(data),
        links=tuple(
            ProblemLink(
                src=_end(entry, "src"),
                dst=_end(entry, "dst"),
                bytes_per_s=_number(entry, "bandwidth", "links"),
                latency_s=_number(entry, "latency", "links"),
            )
            for entry in _tables(data, "links")
        ),
    )
    placements = data.get("placements", {})
    if not isinstance(placements, dict):
        raise ReferenceFileError("placements: expected an object", param="placements")
    published = {
        name: _published(name, entry, layers) for name, entry in sorted(placements.items())
    }
    return ReferenceCluster(problem, published)


def read_model_name(path: Path) -> str:
    """The model that a cluster file's tables are for. ReferenceFileError."""
    return _text(_table(_load(path), "model"), "name", "model")


def read_reference_profiles(path: Path) -> Mapping[str, Mapping[str, StepTimes]]:
    """`profiles.json`: measured step times by model, then machine type. ReferenceFileError."""
    models = _table(_load(path), "models")
    profiles: dict[str, Mapping[str, StepTimes]] = {}
    for model in sorted(models):
        machines = _table(_table(models, model), "machines")
        profiles[model] = {
            name: StepTimes(
                prefill=_points(_table(machines, name), "prompt_bs2time"),
                decode=_points(_table(machines, name), "decode_bs2time"),
            )
            for name in sorted(machines)
        }
    return profiles


def _points(data: Mapping[str, object], field: str) -> Points:
    table = _table(data, field)
    try:
        sizes = sorted((float(key), key) for key in table)
    except ValueError as error:
        raise ReferenceFileError(f"{field}: batch sizes must be numbers", param=field) from error
    return tuple((size, _number(table, key, field)) for size, key in sizes)


def _load(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ReferenceFileError(f"{path}: larger than {MAX_FILE_BYTES} bytes", param="file")
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReferenceFileError(
            f"{path}: cannot be read as JSON: {error}", param="file"
        ) from error
    if not isinstance(data, dict):
        raise ReferenceFileError(f"{path}: expected an object at the top", param="file")
    return data


def _nodes(data: Mapping[str, object]) -> tuple[ProblemNode, ...]:
    regions = _regions(data)
    nodes = []
    for entry in _tables(data, "nodes"):
        where = f"nodes[{entry.get('id')!r}]"
        max_layers = _whole(entry, "max_num_layers", where)
        nodes.append(
            ProblemNode(
                name=node_name(_whole(entry, "id", where)),
                type_name=_text(entry, "type", where),
                region=regions.get(_whole(entry, "id", where), ""),
                max_layers=max_layers,
                tokens_per_s_by_layers=_by_layers(entry, "throughput_by_layers", max_layers, where),
                kv_tokens_by_layers=_by_layers(
                    entry, "kv_cache_capacity_by_layers", max_layers, where
                ),
                nic_in_bytes_per_s=_number(entry, "nic_in", where),
                nic_out_bytes_per_s=_number(entry, "nic_out", where),
                vram_bytes=int(_number(entry, "vram", where)),
            )
        )
    return tuple(nodes)


def node_name(number: int) -> NodeId:
    """The name of the file's node `number`: its number in decimal."""
    return NodeId(str(number))


def _regions(data: Mapping[str, object]) -> dict[int, str]:
    """Nodes joined by links of local latency share a region; the files do not name regions."""
    group: dict[int, int] = {
        _whole(n, "id", "nodes"): _whole(n, "id", "nodes") for n in _tables(data, "nodes")
    }

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for entry in _tables(data, "links"):
        src, dst = entry.get("src"), entry.get("dst")
        if (
            isinstance(src, int)
            and isinstance(dst, int)
            and src in group
            and dst in group
            and _number(entry, "latency", "links") <= LOCAL_LATENCY_S
        ):
            low, high = sorted((root(src), root(dst)))
            group[high] = low
    roots = sorted({root(number) for number in group})
    return {number: f"region-{roots.index(root(number))}" for number in group}


def _published(name: str, entry: object, num_layers: int) -> PublishedPlacement:
    where = f"placements.{name}"
    if not isinstance(entry, dict) or not isinstance(entry.get("layers"), dict):
        raise ReferenceFileError(f"{where}.layers: expected an object", param=where)
    slices: dict[NodeId, LayerRange] = {}
    for key, value in entry["layers"].items():
        if not (
            isinstance(value, list)
            and len(value) == 2
            and all(isinstance(x, int) for x in value)
            and 0 <= value[0] < value[1] <= num_layers
        ):
            raise ReferenceFileError(
                f"{where}.layers[{key!r}]={value!r}: expected [first, end] within 0..{num_layers}",
                param=where,
            )
        slices[NodeId(str(key))] = LayerRange(value[0], value[1])
    flow = None
    if entry.get("max_flow_reference_simulator") is not None:
        flow = _number(entry, "max_flow_reference_simulator", where)
    return PublishedPlacement(
        name=name,
        placement=Placement(num_layers, slices),
        max_flow_tokens_per_s=flow,
        links=_own_links(entry.get("simulator_cluster")),
    )


def _own_links(cluster: object) -> frozenset[tuple[NodeId, NodeId]] | None:
    if not isinstance(cluster, dict) or not isinstance(cluster.get("links"), list):
        return None
    return frozenset(
        (_end(entry, "src"), _end(entry, "dst")) for entry in _tables(cluster, "links")
    )


def _table(data: Mapping[str, object], field: str) -> dict[str, object]:
    value = data.get(field)
    if not isinstance(value, dict):
        raise ReferenceFileError(f"{field}: expected an object, got {value!r:.60}", param=field)
    return value


def _tables(data: Mapping[str, object], field: str) -> list[dict[str, object]]:
    value = data.get(field)
    if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
        raise ReferenceFileError(f"{field}: expected a list of objects", param=field)
    return value


def _text(data: Mapping[str, object], field: str, where: str) -> str:
    value = data.get(field)
    if not isinstance(value, str) or not value:
        raise ReferenceFileError(f"{where}.{field}={value!r:.60}: expected a text", param=field)
    return value


def _number(data: Mapping[str, object], field: str, where: str) -> float:
    value = data.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise ReferenceFileError(f"{where}.{field}={value!r:.60}: expected a number", param=field)
    return float(value)


def _finite(value: float) -> bool:
    """Whether a float holds it: JSON has integers of any size, and Python reads NaN there."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _whole(data: Mapping[str, object], field: str, where: str) -> int:
    value = data.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_WHOLE:
        raise ReferenceFileError(
            f"{where}.{field}={value!r:.60}: expected a whole number up to {MAX_WHOLE}",
            param=field,
        )
    return value


def _by_layers(
    data: Mapping[str, object], field: str, max_layers: int, where: str
) -> tuple[float, ...]:
    """The table as a tuple; index k-1 is for k layers. Goes on past `max_layers` if given."""
    table = _table(data, field)
    count = len(table)
    if count < max_layers:
        raise ReferenceFileError(
            f"{where}.{field}: has {count} entries, needs 1..{max_layers}", param=field
        )
    return tuple(_number(table, str(k), f"{where}.{field}") for k in range(1, count + 1))


def _end(entry: Mapping[str, object], field: str) -> NodeId:
    value = entry.get(field)
    if value == "source":
        return SOURCE
    if value == "sink":
        return SINK
    return node_name(_whole(entry, field, "links"))
