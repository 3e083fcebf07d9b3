"""What a plan starts from: the cluster file with its model, and the nodes added or removed.

A cluster is the reference's JSON (measured tables inside) or our TOML, which needs a model. Nodes
are added to a TOML cluster as machines of the catalogue, so any type will do; to a JSON cluster as
twins of machines there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helix_mq.cluster import Cluster, ClusterNode, read_cluster
from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.models.config import ModelConfig
from helix_mq.models.fields import read_json_object
from helix_mq.models.resolve import resolve_model
from solver.build import build_problem
from solver.explain_what_if import Addition, what_if
from solver.objective import StepTimes, Workload
from solver.problem import Problem
from solver.reference_json import read_model_name, read_reference_cluster, read_reference_profiles

PROFILES = "profiles.json"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a Problem comes from; saved with a plan, so that it can be verified later.

    `workload`: the lengths that machines' speeds are reckoned with where a cluster in TOML does not
    give them; None for the usual ones.
    """

    cluster: Path
    model: Path | None = None
    add: tuple[Addition, ...] = ()
    remove: tuple[NodeId, ...] = ()
    workload: Workload | None = None

    def problem(self) -> Problem:
        """The Problem alone. ConfigError or ModelFormatError in words."""
        return read_input(self).problem


@dataclass(frozen=True, slots=True)
class PlanInput:
    """`step_times` by machine type; None for a JSON cluster without its profiles beside it."""

    problem: Problem
    step_times: Mapping[str, StepTimes] | None


def read_input(source: Source) -> PlanInput:
    """Reads cluster and model, then adds and removes nodes. ConfigError, ModelFormatError."""
    if source.cluster.suffix == ".json":
        reference = read_reference_cluster(source.cluster).problem
        problem = what_if(reference, add=source.add, remove=source.remove)
        return PlanInput(problem, _published_times(source.cluster))
    if source.model is None:
        raise ConfigError(
            f"{source.cluster} describes machines only: name the model with --model "
            "(a config.json, a model folder or a GGUF file)",
            param="model",
        )
    cluster = _changed(read_cluster(source.cluster), source.add, source.remove)
    return PlanInput(*build_problem(cluster, read_config(source.model), source.workload))


def read_problem(cluster: Path, model: Path | None = None) -> Problem:
    """The Problem in a cluster file as it is. ConfigError or ModelFormatError in words."""
    return Source(cluster, model).problem()


def read_config(path: Path) -> ModelConfig:
    """From a config.json, a model folder, or a GGUF file."""
    if path.suffix == ".json":
        return ModelConfig.from_dict(read_json_object(path), source=str(path))
    return ModelConfig.from_folder(resolve_model(path))


def _published_times(cluster: Path) -> Mapping[str, StepTimes] | None:
    """The profiles published with the JSON clusters lie beside their folder."""
    for folder in (cluster.parent, cluster.parent.parent):
        if (folder / PROFILES).is_file():
            return read_reference_profiles(folder / PROFILES).get(read_model_name(cluster))
    return None


def _changed(cluster: Cluster, add: Sequence[Addition], remove: Sequence[NodeId]) -> Cluster:
    known = {n.name for n in cluster.nodes}
    for name in remove:
        if name not in known:
            raise ConfigError(
                f"--remove {name}: {cluster.name} has no such node; its nodes are "
                f"{_some(sorted(known))}",
                param="remove",
            )
    gone = frozenset(remove)
    nodes = [n for n in cluster.nodes if n.name not in gone]
    regions = sorted({n.region for n in cluster.nodes})
    for addition in add:
        region = addition.region or _home(cluster, addition.type_name)
        if region not in regions:
            raise ConfigError(
                f"--add {addition.type_name}@{region}: {cluster.name} has no such region; its "
                f"regions are {_some(regions)}",
                param="add",
            )
        nodes += _new_nodes(cluster, addition, region, {n.name for n in nodes})
    if not nodes:
        raise ConfigError("--remove: no node is left", param="remove")
    paths = {ends: path for ends, path in cluster.paths.items() if not gone & set(ends)}
    return replace(cluster, nodes=tuple(nodes), paths=paths)


def _home(cluster: Cluster, type_name: str) -> str:
    """Where machines of the type are already, else where the router is."""
    return next((n.region for n in cluster.nodes if n.type_name == type_name), "") or next(
        (n.region for n in cluster.nodes if n.region == cluster.router_region),
        cluster.nodes[0].region,
    )


def _new_nodes(
    cluster: Cluster, addition: Addition, region: str, taken: set[NodeId]
) -> list[ClusterNode]:
    """Like the machines of their type that are there, or as the catalogue has them."""
    alike = [n for n in cluster.nodes if n.type_name == addition.type_name]
    near = [n for n in cluster.nodes if n.region == region]
    nodes: list[ClusterNode] = []
    number = 1
    while len(nodes) < addition.count:
        name = NodeId(f"new-{addition.type_name.lower()}-{number}")
        number += 1
        if name in taken:
            continue
        nodes.append(
            replace(alike[0], name=name, region=region)
            if alike
            else ClusterNode(name, addition.type_name, region, None, near[0].nic_bits_per_s, None)
        )
    return nodes


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
