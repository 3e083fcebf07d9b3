"""Has all nodes of a cluster hold other layers, as an operator would, and waits until that is made.

Both placements stand the loss of any two nodes (cluster.LAYOUT), so nobody has an excuse later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from bench.chaos.cluster import LAYOUT, OTHER_LAYOUT, POLL_S, ChaosCluster, slices_of

PLACE_S = 60.0
"""A placement is made, or given up, after this at the latest."""

Slices = dict[str, list[int]]
"""`[first, end]` by node."""


async def place_other(cluster: ChaosCluster, *, alone: bool) -> str:
    """Asks for OTHER_LAYOUT, or for LAYOUT where the other one is held. In words what went wrong.

    With other faults at the time (not `alone`) the router may refuse, or give up on the way.
    """
    end_s = asyncio.get_running_loop().time() + PLACE_S
    target: Slices | None = None
    last = "no answer from the router"
    while asyncio.get_running_loop().time() < end_s:
        state = await cluster.operate("cluster")
        if state is not None and state.status_code == 200:
            doing, held = state.json()["doing"], held_slices(state.json())
            last = doing or f"the nodes hold {held}"
            if target is not None and not doing and (held == target or not alone):
                return ""
            if target is None:
                target = other_than(held, num_layers(cluster.plan.slices))
                answer = await cluster.operate("placement", {"slices": target})
                if answer is None or answer.status_code != 202:
                    if not alone:
                        return ""
                    target = None
                    last = answer.text[:300] if answer is not None else last
        await asyncio.sleep(POLL_S)
    return f"a placement was not made within {PLACE_S:.0f} s: {last}"


async def held_now(cluster: ChaosCluster) -> Slices:
    """By what the router says; empty when it does not answer."""
    state = await cluster.operate("cluster")
    return held_slices(state.json()) if state is not None and state.status_code == 200 else {}


def num_layers(slices: Mapping[str, str]) -> int:
    """Of the model that these `first:end` cover."""
    return max(int(ends.split(":")[1]) for ends in slices.values())


def other_than(held: Slices, layers: int) -> Slices:
    """OTHER_LAYOUT in layers; LAYOUT where that is held."""
    first, other = (
        {name: [int(end) for end in ends.split(":")] for name, ends in named.items()}
        for named in (slices_of(layers, LAYOUT), slices_of(layers, OTHER_LAYOUT))
    )
    return first if held == other else other


def held_slices(state: Mapping[str, Any]) -> Slices:
    """From the JSON of /v1/helix/cluster, whose layers are `first-last`."""
    found = {}
    for node in state["nodes"]:
        if node["layers"]:
            first, last = node["layers"].split("-")
            found[str(node["node"])] = [int(first), int(last) + 1]
    return found
