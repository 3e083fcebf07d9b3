"""Which links a formulation keeps: all that work, or the fastest of each node.

Pruning makes the programme smaller and gives up optimality over the whole cluster; what it finds is
still judged on all links.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solver.search_index import FloatArray, ProblemIndex
from solver.search_types import MilpOptions


def kept_links(index: ProblemIndex, options: MilpOptions) -> NDArray[np.bool_]:
    """(nodes, nodes) mask of the links to model, by source and destination.

    A link is kept if it is among the fastest `keep_links` that leave its source or that reach its
    destination; slower than `min_link_bytes_per_s`, it must be among the first
    `keep_links_at_least`. Ties go to the earlier node.
    """
    works = index.link > 0
    if options.keep_links is None:
        return works
    floor = options.min_link_bytes_per_s / index.problem.activation_bytes
    rank = np.minimum(_ranks(index.link), _ranks(index.link.T).T)
    keep = (rank < options.keep_links) & (
        (index.link >= floor) | (rank < options.keep_links_at_least)
    )
    kept: NDArray[np.bool_] = works & keep
    return kept


def _ranks(link: FloatArray) -> NDArray[np.int64]:
    """Place of each link among those of its row, fastest first."""
    order = np.argsort(-link, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(link.shape[1])[None, :], axis=1)
    return ranks


def interchangeable(index: ProblemIndex, members: tuple[int, ...]) -> bool:
    """True if exchanging any two of `members` leaves the problem as it is."""
    at = np.array(members, dtype=np.int64)
    rows = (index.source, index.sink, index.nic_in, index.nic_out)
    if any(np.ptp(row[at]) > 0 for row in rows):
        return False
    others = np.setdiff1d(np.arange(len(index)), at)
    if np.ptp(index.link[np.ix_(at, others)], axis=0).any():
        return False
    if np.ptp(index.link[np.ix_(others, at)], axis=1).any():
        return False
    among = index.link[np.ix_(at, at)][~np.eye(len(at), dtype=bool)]
    return len(among) == 0 or bool(np.ptp(among) == 0)
