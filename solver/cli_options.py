"""From the command line's words to the planner's options: what to start from, how to search."""

from __future__ import annotations

import os
from pathlib import Path

from helix_mq.errors import ConfigError
from helix_mq.layers import Placement
from solver.heuristics import petals, swarm, swarm_widths
from solver.heuristics_pipelines import homogeneous, separate
from solver.plan_file import read_plan
from solver.problem import Problem
from solver.search_types import NoPlacement

STARTS = ("petals", "swarm", "homogeneous", "separate", "separate-leftovers")
MAX_SEED = 2**31 - 1
"""What HiGHS and SCIP take."""


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


def require_seed(seed: int) -> int:
    """ConfigError unless every solver takes it: asked before a long search, not after."""
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed={seed} must be in 0..{MAX_SEED}", param="seed")
    return seed


def require_plan_name(path: Path, param: str) -> None:
    """ConfigError for a plan that nothing would find again: its name says what it is."""
    require_writable(path, param)
    if path.suffix != ".toml":
        raise ConfigError(
            f"{param}={path}: the name must end in .toml, as that is what a plan is written in",
            param=param,
        )


def require_writable(path: Path, param: str) -> None:
    """ConfigError where no file of that name can be made: before a long search, not after."""
    folder = path.parent
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        reason = "permission denied"
    else:
        return
    raise ConfigError(f"{param}={path}: cannot be written: {reason}", param=param)
