"""A plan saved by `helix-mq plan --save`, as the router uses it: layers, speeds and links. Pure but
for reading the files.

The placement fixes each node's layers. The cluster that the plan names gives the speeds and links
that flows are computed with; a plan that names none leaves them to what nodes measure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from helix_mq.errors import ConfigError
from helix_mq.layers import Placement, describe_ranges
from router.flows import LiveNode, live_flow
from router.planned_speeds import PlannedSpeeds
from solver.plan_file import read_plan
from solver.problem import Problem

FIELD = "placement.plan"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class PlannedPlacement:
    """`problem` is None where the plan names no cluster."""

    placement: Placement
    problem: Problem | None


def read_planned(path: Path, num_layers: int) -> PlannedPlacement:
    """The plan in a file, for a model of so many layers.

    ConfigError or ModelFormatError in words: it cannot be read, is for another model, leaves layers
    out, or could never serve over its own cluster's links.
    """
    plan = read_plan(path)
    placement = plan.placement
    if placement.num_layers != num_layers:
        raise ConfigError(
            f"{path}: num_layers = {placement.num_layers}, but the router's model has "
            f"{num_layers}: make a plan for this model",
            param=FIELD,
        )
    missing = placement.missing()
    if missing:
        raise ConfigError(
            f"{path}: {describe_ranges(missing)} on no node, so it cannot serve: make another plan "
            "with `helix-mq plan --save`",
            param=FIELD,
        )
    for name in placement:
        if _NAME.fullmatch(name) is None:
            raise ConfigError(
                f"{path}: nodes.{name!r:.80}: no node can have this name; use letters, digits, "
                "dots, dashes and underscores, 64 at most",
                param=FIELD,
            )
    problem = plan.source.problem() if plan.source is not None else None
    if problem is not None:
        _check(path, placement, problem)
    return PlannedPlacement(placement, problem)


def _check(path: Path, placement: Placement, problem: Problem) -> None:
    """What would only show once all nodes have loaded."""
    if problem.num_layers != placement.num_layers:
        raise ConfigError(
            f"{path}: the plan is for {placement.num_layers} layers, its cluster {problem.name} "
            f"for a model of {problem.num_layers}",
            param=FIELD,
        )
    known = {node.name: node for node in problem.nodes}
    for name in placement:
        node, held = known.get(name), placement.slices[name]
        if node is not None and len(held) > len(node.tokens_per_s_by_layers):
            raise ConfigError(
                f"{path}: node {name} is to hold {held}, but {problem.name} says that at most "
                f"{len(node.tokens_per_s_by_layers)} layers fit it",
                param=FIELD,
            )
    nodes = [LiveNode(name, placement.slices[name], 1.0) for name in placement]
    if live_flow(placement.num_layers, nodes, PlannedSpeeds(problem)).tokens_per_s <= 0:
        raise ConfigError(
            f"{path}: the links of {problem.name} lead nowhere from the first layer to the last; "
            "`helix-mq plan verify` says where",
            param=FIELD,
        )
