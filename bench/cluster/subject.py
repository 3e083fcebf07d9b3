"""What is emulated: a cluster, a model's sizes and a placement, as the simulator takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cluster.slower import slowed_source
from bench.cluster.stand_in import most_pages
from bench.simulator.machines import kv_pages
from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import Placement
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from solver.cli_options import STARTS, warm_start
from solver.inputs import Source, read_input
from solver.objective import StepTimes
from solver.plan_file import PlanFile, read_plan, write_plan
from solver.problem import Problem, ProblemNode

MAX_NODES = 16
"""Each is a process with torch in it, and each pair has a way through the shaper."""


@dataclass(frozen=True, slots=True)
class Subject:
    """`plan`: the placement as a file, which the live router reads with the cluster's links."""

    problem: Problem
    step_times: Mapping[str, StepTimes]
    placement: Placement
    plan: Path

    def node(self, name: NodeId) -> ProblemNode:
        return next(node for node in self.problem.nodes if node.name == name)

    def times_of(self, name: NodeId) -> StepTimes:
        return self.step_times[self.node(name).type_name]

    def kv_pages(self, name: NodeId) -> int:
        """Layer-pages, live as simulated."""
        return kv_pages(self.node(name), len(self.placement.slices[name]), DEFAULT_PAGE_TOKENS)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.problem.name,
            "num_layers": self.problem.num_layers,
            "activation_bytes": self.problem.activation_bytes,
            "nodes": {
                name: {
                    "type": self.node(name).type_name,
                    "region": self.node(name).region,
                    "layers": f"{held.first}:{held.end}",
                    "kv_pages": self.kv_pages(name),
                }
                for name, held in sorted(self.placement.slices.items())
            },
        }


def read_subject(
    cluster: Path | None,
    model: Path | None,
    placement: str,
    seed: int,
    folder: Path,
    slower: float = 1.0,
) -> Subject:
    """`placement`: a saved plan, which may name cluster and model, or a method; a plan file is
    written to `folder`. `slower`: see bench.cluster.slower. ConfigError in words."""
    source, placed = _source(cluster, model, placement)
    folder.mkdir(parents=True, exist_ok=True)
    source = slowed_source(source, slower, folder)
    given = read_input(source)
    if given.step_times is None:
        raise ConfigError(f"{source.cluster}: gives no step times", param="cluster")
    if placed is None:
        if placement not in STARTS:
            raise ConfigError(
                f"--placement {placement}: name a saved plan (.toml) or one of {', '.join(STARTS)}",
                param="placement",
            )
        placed = warm_start(placement, given.problem, seed)
    if len(placed.slices) > MAX_NODES:
        raise ConfigError(
            f"--placement {placement}: uses {len(placed.slices)} nodes; {MAX_NODES} at most are "
            "emulated on one machine",
            param="placement",
        )
    plan = (folder / "plan.toml").resolve()
    write_plan(
        plan, PlanFile(given.problem.name, source, placed, "given", None, workload=source.workload)
    )
    return Subject(_bounded(given.problem, placed), given.step_times, placed, plan)


def _source(
    cluster: Path | None, model: Path | None, placement: str
) -> tuple[Source, Placement | None]:
    plan = read_plan(Path(placement)) if placement.endswith(".toml") else None
    if cluster is not None:
        workload = plan.workload if plan is not None else None
        source = Source(cluster.resolve(), model.resolve() if model else None, workload=workload)
        return source, plan.placement if plan is not None else None
    if plan is None or plan.source is None:
        raise ConfigError(
            "no cluster: name a cluster file, or a --placement saved by `plan --save`",
            param="cluster",
        )
    return plan.source, plan.placement


def _bounded(problem: Problem, placement: Placement) -> Problem:
    """Without the nodes that hold nothing, and with no more KV room than a stand-in's node can
    have: both sides see the same."""
    nodes = []
    for node in problem.nodes:
        held = placement.slices.get(node.name)
        if held is None:
            continue
        room = node.kv_tokens(len(held))
        if room is None or not math.isfinite(room):
            raise ConfigError(f"node {node.name}: its KV room is unknown", param="cluster")
        most = most_pages(len(held)) * DEFAULT_PAGE_TOKENS
        rooms = tuple(min(r, most) for r in node.kv_tokens_by_layers)
        nodes.append(replace(node, kv_tokens_by_layers=rooms))
    names = {node.name for node in nodes}
    ends = {node.name for node in problem.nodes} - names
    links = tuple(k for k in problem.links if k.src not in ends and k.dst not in ends)
    return replace(problem, nodes=tuple(nodes), links=links)
