"""Carries faults out on a cluster, and mends them."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field

from bench.chaos.cluster import ROUTER, ChaosCluster
from bench.chaos.faults import Fault, Kind
from bench.chaos.picture import Picture
from bench.chaos.placing import place_other
from helix_mq.errors import LocalError

GHOST_S = 5.0
"""A node that left is out of every table after this at the latest."""
DRAIN_S = 45.0
"""A node waits for its requests for 30 s by default, on a machine with more to do than it can."""


@dataclass(slots=True)
class Marks:
    """What was measured while faults came and went. `forgotten_s`: from a node's end until the
    router showed it no more."""

    forgotten_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Guarantees that did not hold, in words."""


async def strike(cluster: ChaosCluster, fault: Fault, marks: Marks, *, alone: bool) -> None:
    """Does the fault, holds it and mends it; the cluster may take a while longer to be whole.
    `alone`: nothing else happens at the time, which a re-placement must succeed in."""
    match fault.kind:
        case Kind.REPLACE:
            trouble = await place_other(cluster, alone=alone)
            if trouble:
                marks.broken.append(trouble)
        case Kind.KILL | Kind.RESTART | Kind.DRAIN:
            await _end(cluster, fault, marks)
        case Kind.ROUTER:
            await cluster.children[ROUTER].kill()
            await asyncio.sleep(fault.hold_s)
            await cluster.children[ROUTER].start()
        case Kind.HANG | Kind.PAUSE:
            child = cluster.children[fault.node]
            child.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.hold_s)
            finally:
                child.signal(signal.SIGCONT)
        case _:
            await _links(cluster, fault)


async def _end(cluster: ChaosCluster, fault: Fault, marks: Marks) -> None:
    child = cluster.children[fault.node]
    if fault.kind is Kind.DRAIN:
        child.signal(signal.SIGTERM)
        try:
            code = await child.ended(DRAIN_S)
        except TimeoutError:
            marks.broken.append(f"{fault.node} did not end within {DRAIN_S:.0f} s of SIGTERM")
            await child.kill()
        else:
            if code != 0:
                marks.broken.append(f"{fault.node} ended with code {code} after SIGTERM")
    else:
        await child.kill()
    if fault.kind is not Kind.RESTART:
        await _no_ghost(cluster, fault.node, marks)
        await asyncio.sleep(fault.hold_s)
    await child.start()


async def _no_ghost(cluster: ChaosCluster, node: str, marks: Marks) -> None:
    def gone(picture: Picture) -> bool:
        tables = (picture.nodes, picture.used_pages, picture.open_requests)
        ends = [name for link in picture.down_s for name in link]
        return node not in ends and all(node not in table for table in tables)

    try:
        marks.forgotten_s.append(await cluster.until(gone, f"{node} is forgotten", GHOST_S))
    except LocalError as e:
        marks.broken.append(str(e))


async def _links(cluster: ChaosCluster, fault: Fault) -> None:
    node, source = fault.node, fault.source
    gate = cluster.data_gates[node]
    match fault.kind:
        case Kind.BREAK:
            await gate.break_once()
            return
        case Kind.CUT:
            await gate.cut(source)
        case Kind.ISOLATE:
            await gate.cut()
        case Kind.FREEZE:
            gate.freeze(source)
        case Kind.CONTROL:
            gate = cluster.control_gates[node]
            await gate.cut()
        case Kind.TOKENS:
            gate = cluster.data_gates[ROUTER]
            await gate.cut(node)
        case Kind.CLIENT:
            gate = cluster.client_gate
            await gate.cut()
        case _:
            raise AssertionError(f"not a fault of links: {fault}")
    try:
        await asyncio.sleep(fault.hold_s)
    finally:
        await gate.heal()
