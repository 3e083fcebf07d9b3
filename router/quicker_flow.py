"""Of all flows that are as large, one whose tokens are least long on their way. Pure.

A maximum flow is seldom the only one, and an algorithm for it takes whichever it comes to first: a
few bytes/s more or less on a link, and tokens cross an ocean three times where once would do. A
linear programme, by HiGHS, minimises tokens/s times seconds over all links, the flow's value given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import maximum_flow

MOST_ARCS = 12_000
"""As among 200 nodes. In larger graphs the flow stays as it was found: of this size it takes some
60 ms more, of twice that 180, which may be the router's loop's after nodes came or went."""
_CLOSE = 1e-6
"""Of the flow: less on an arc is HiGHS's own tolerance."""


def quicker(
    tails: Sequence[int],
    heads: Sequence[int],
    units: npt.NDArray[np.int32],
    hops_s: Sequence[float],
    passes: int,
) -> csr_array | None:
    """Another flow of `passes` units from vertex 0 to 1, as scipy's maximum_flow gives one; None
    where there is nothing to choose by, too much to choose from, or none was found.

    units: [arcs] that each may carry, of which `passes` is the most that get through; hops_s: how
    long each takes.
    """
    if not passes or len(units) > MOST_ARCS or not any(hops_s):
        return None
    size, arcs = 1 + max(*tails, *heads), np.arange(len(units))
    ends = np.concatenate([np.array(heads), np.array(tails)])
    signs = np.repeat([1.0, -1.0], len(units))
    kept = coo_array((signs, (ends, np.tile(arcs, 2))), shape=(size, len(units))).tocsr()
    # What comes in goes out, and all of it leaves the source; then the sink gets it.
    rows = [0, *range(2, size)]
    leaves = np.zeros(len(rows))
    leaves[0] = -1.0
    answer = linprog(
        np.array(hops_s),
        A_eq=kept[rows],
        b_eq=leaves,
        bounds=np.column_stack([np.zeros(len(units)), np.minimum(1.0, units / passes)]),
        method="highs",
    )
    if answer.status != 0:
        return None
    # In whole units again: a flow over nothing but what it uses.
    used = np.where(answer.x > _CLOSE, np.rint(answer.x * passes), 0.0)
    shape = (size, size)
    only = csr_array((np.minimum(units, used).astype(np.int32), (tails, heads)), shape=shape)
    found = maximum_flow(only, 0, 1, method="dinic")
    return found.flow if found.flow_value >= passes * (1 - 100 * _CLOSE) else None
