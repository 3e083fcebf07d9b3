"""A search for a placement, and what came of it. Plain data, between processes too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.problem import Problem


@dataclass(frozen=True, slots=True)
class Search:
    """`now`: what serves at present, to begin from and to compare with; None where nothing does."""

    problem: Problem
    now: Placement | None
    limit_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """A verified placement, and the max flow of it and of the present one on the same problem."""

    slices: Mapping[NodeId, LayerRange]
    tokens_per_s: float
    now_tokens_per_s: float
    method: str


@dataclass(frozen=True, slots=True)
class NothingFound:
    reason: str
