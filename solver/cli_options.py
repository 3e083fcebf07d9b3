"""From the command line's words to the planner's options: what to start from, how to search."""

from __future__ import annotations

from pathlib import Path

from helix_mq.errors import ConfigError
from helix_mq.layers import Placement
from solver.heuristics import petals, swarm, swarm_widths
from solver.heuristics_pipelines import homogeneous, separate
from solver.plan_file import read_plan
from solver.problem import Problem
from solver.search_types import NoPlacement

STARTS = ("petals", "swarm", "homogeneous", "separate", "separate-leftovers")


def warm_start(text: str, problem: Problem, seed: int) -> Placement:
    """The placement in a plan file, or that of a method. ConfigError, NoPlacement in words."""
    if text in STARTS:
        return _by_method(text, problem, seed)
    path = Path(text)
    if path.suffix != ".toml":
        raise ConfigError(
            f"--warm-start {text}: name a saved plan (.toml) or one of {', '.join(STARTS)}",
            param="warm_start",
        )
    return read_plan(path).placement


def _by_method(method: str, problem: Problem, seed: int) -> Placement:
    if method == "petals":
        return petals(problem, seed)
    if method == "homogeneous":
        return homogeneous(problem)
    if method != "swarm":
        return separate(problem, leftovers=method == "separate-leftovers")
    widths = swarm_widths(problem)
    if not widths:
        raise NoPlacement("swarm: no node has room for a layer")
    return swarm(problem, widths[0])


def files_beside(saved: Path) -> Path:
    """The folder for what the mixed-integer solver leaves: `plan.toml` -> `plan.milp`."""
    return saved.with_suffix(".milp")
