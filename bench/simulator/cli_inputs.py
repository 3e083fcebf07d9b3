"""From the command line's words to what a simulation takes: problem, placements, faults.

Errors name the option, what it was given and what it may be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.simulator.settings import Fault, FaultKind
from helix_mq.errors import ConfigError
from helix_mq.layers import Placement
from solver.cli_options import STARTS, warm_start
from solver.inputs import Source, read_input
from solver.objective import StepTimes
from solver.objective import Workload as PlannedLengths
from solver.plan_file import PlanFile, read_plan
from solver.problem import Problem
from solver.reference_json import read_reference_cluster

_FAULT = re.compile(r"(kill|cut|slow|restore|join):([^@:]+)(?::([^@]+))?@([0-9.]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What there is to simulate; `placements` by the names they were asked for. `workload`: the
    lengths that the first plan which says so was made for."""

    problem: Problem
    step_times: Mapping[str, StepTimes]
    placements: Mapping[str, Placement]
    workload: PlannedLengths | None = None

    def default_workload(self) -> str:
        """A specification of random lengths with these means, or the usual ones, once a second."""
        means = self.workload or PlannedLengths()
        prompt, output = f"{means.input_tokens:.9g}", f"{means.output_tokens:.9g}"
        return f"synthetic:prompt=exponential({prompt}),output=exponential({output}),rate=1"


def read_inputs(
    cluster: Path | None, model: Path | None, placements: Sequence[str], seed: int
) -> Inputs:
    """Cluster, model and placements. Without a cluster, the first plan's own. ConfigError."""
    source = _source(cluster, model, placements)
    given = read_input(source)
    if given.step_times is None:
        raise ConfigError(
            f"{source.cluster}: no step times: a simulation needs profiles.json beside the "
            "cluster's folder, or a TOML cluster",
            param="cluster",
        )
    found = {name: _placement(name, source, given.problem, seed) for name in placements}
    return Inputs(given.problem, given.step_times, found, source.workload)


def _source(cluster: Path | None, model: Path | None, placements: Sequence[str]) -> Source:
    plans = [plan for name in placements if (plan := _plan(name)) is not None]
    if cluster is not None:
        known = (plan.workload for plan in plans if plan.workload is not None)
        return Source(cluster, model, workload=next(known, None))
    for plan in plans:
        if plan.source is not None:
            return plan.source
    raise ConfigError(
        "no cluster: name a cluster file, or a --placement saved by `plan --save`",
        param="cluster",
    )


def _plan(name: str) -> PlanFile | None:
    return read_plan(Path(name)) if name.endswith(".toml") else None


def _placement(name: str, source: Source, problem: Problem, seed: int) -> Placement:
    plan = _plan(name)
    if plan is not None:
        _check_fits(name, plan.placement, problem)
        return plan.placement
    if source.cluster.suffix == ".json":
        published = read_reference_cluster(source.cluster).published
        if name in published:
            return published[name].placement
        known = [*published, *(start for start in STARTS if start not in published)]
    else:
        known = list(STARTS)
    if name not in STARTS:
        raise ConfigError(
            f"--placement {name}: name a saved plan (.toml) or one of {', '.join(known)}",
            param="placement",
        )
    return warm_start(name, problem, seed)


def _check_fits(name: str, placement: Placement, problem: Problem) -> None:
    known = {node.name for node in problem.nodes}
    strangers = [node for node in placement if node not in known]
    if strangers or placement.num_layers != problem.num_layers:
        what = f"node {strangers[0]} is" if strangers else "its number of layers is"
        raise ConfigError(f"--placement {name}: {what} not the cluster's", param="placement")


def parse_fault(text: str) -> Fault:
    """`kill:NODE@S`, `cut:NODE:NODE@S`, `slow:NODE:FACTOR@S`, `restore:NODE[:NODE]@S`,
    `join:NODE@S`. ConfigError."""
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--fault {text}: write kill:NODE@S, cut:NODE:NODE@S, slow:NODE:FACTOR@S, "
            "restore:NODE@S, restore:NODE:NODE@S or join:NODE@S, S in seconds",
            param="fault",
        )
    kind, node, second = FaultKind(match[1]), match[2], match[3] or ""
    at_s = _number(text, match[4])
    if kind is FaultKind.SLOW:
        return Fault(at_s, kind, node, factor=_number(text, second))
    if second and kind not in (FaultKind.CUT, FaultKind.RESTORE):
        raise ConfigError(f"--fault {text}: {kind} takes one node", param="fault")
    return Fault(at_s, kind, node, peer=second)


def _number(text: str, part: str) -> float:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"--fault {text}: {part!r} is not a number", param="fault")
    return value
