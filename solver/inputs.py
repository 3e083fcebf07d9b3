"""Which Problem a cluster file holds, by its kind."""

from __future__ import annotations

from pathlib import Path

from helix_mq.errors import ConfigError
from solver.problem import Problem
from solver.reference_json import read_reference_cluster


def read_problem(cluster: Path) -> Problem:
    """The Problem in a cluster file with measured tables (the reference's JSON).

    ConfigError in words for anything else.
    """
    if cluster.suffix != ".json":
        raise ConfigError(
            f"{cluster} is no cluster file with measured tables (.json)", param="cluster"
        )
    return read_reference_cluster(cluster).problem
