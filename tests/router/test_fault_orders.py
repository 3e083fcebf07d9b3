"""Faults in any order that hypothesis thinks of, under load, on a virtual clock.

While they come every token is held against the right one and `core.check()` runs after every event
(FaultWorld). In the end all is mended: every stream must have ended once, as one undisturbed
machine would have ended it, and no node, queue or book may hold anything.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helix_mq.ids import ROUTER
from router import events as ev
from router.service import Finished
from tests.router.fault_world import SLICES, FaultWorld

NAMES = sorted(SLICES)
FORGOTTEN_S = 5.0


@dataclass(frozen=True)
class Fault:
    """`what` at `at_s`, mended `for_s` later where it is a thing that lasts."""

    what: str
    at_s: float
    for_s: float
    node: str
    source: str


REQUESTS = 14
SECONDS = st.floats(0, 6, allow_nan=False).map(lambda s: round(s, 3))
FAULTS = st.builds(
    Fault,
    st.sampled_from(
        ["kill", "restart", "stop", "drain", "cut", "isolate", "control", "tokens", "squeeze"]
    ),
    SECONDS,
    SECONDS,
    st.sampled_from(NAMES),
    st.sampled_from([*NAMES, ROUTER]),
)


def begun(seed: int) -> FaultWorld:
    world = FaultWorld(seed)
    members = world.core.cluster.membership
    assert world.run_until(lambda: len(members.serving()) == len(NAMES), 10)
    return world


def plan_fault(world: FaultWorld, fault: Fault) -> None:
    node = fault.node

    def act() -> None:
        match fault.what:
            case "kill":
                world.kill(node)
                world.later(fault.for_s, lambda: node in world.nodes or world.start(node))
            case "restart":
                world.start(node)
            case "stop":
                world.stop(node)
                world.later(fault.for_s, lambda: world.resume(node))
            case "drain":
                world.drain(node)
                world.later(fault.for_s + 1, lambda: node in world.nodes or world.start(node))
            case "cut" if fault.source != node:
                world.cut(fault.source, node)
            case "isolate":
                for source in (*NAMES, ROUTER):
                    world.cut(source, node)
            case "control":
                world.cut_control(node)
            case "tokens":
                world.cut(node, ROUTER)
            case "squeeze":
                world.squeeze(node)

    world.later(fault.at_s, act)


def plan_load(world: FaultWorld, seed: int) -> None:
    """Requests of all lengths, begun before and while faults come; some are cancelled."""
    draw = random.Random(f"load/{seed}")

    def ask() -> None:
        prompt = tuple(draw.randrange(96) for _ in range(draw.choice((1, 3, 17, 40))))
        request = world.submit(prompt, draw.choice((1, 20, 60, 90)), draw.getrandbits(30))
        if request is not None and draw.random() < 0.15:
            at_s = draw.uniform(0, 5)
            world.later(at_s, lambda: world.handle(ev.Cancelled(request)))

    for _ in range(REQUESTS):
        world.later(draw.uniform(0, 6), ask)


def settle(world: FaultWorld, *, all_placed: bool = True) -> None:
    """Mends everything, starts what died, waits for all streams, and holds all to their books. Not
    `all_placed`: who left while placements changed may have no place any more."""
    world.mend()

    def restart() -> None:
        # Some may be leaving still, and go when their requests are done.
        for name in NAMES:
            if name not in world.nodes:
                world.start(name)
        world.later(1.0, restart)

    restart()
    # A placement that cannot be completed is given up when its time to load is over.
    within_s = 120 if all_placed else 2400
    done = world.run_until(lambda: all(s.end for s in world.streams.values()), within_s)
    left = {r: s.reroutes for r, s in world.core.sessions().items()}
    assert done, f"streams that hang, with how often they were moved: {left}"
    assert all(isinstance(s.end, Finished) for s in world.streams.values())
    held = lambda: {n.name: n.ledger.sequences() for n in world.nodes.values() if len(n.ledger)}  # noqa: E731
    world.run_until(lambda: not held(), 10)
    assert not held(), "nodes hold what nobody runs"
    statistics = world.core.statistics()
    assert (statistics.waiting, statistics.running) == (0, 0)
    members = world.core.cluster.membership
    here = (lambda: len(members.serving())) if all_placed else (lambda: len(members))
    back = world.run_until(lambda: here() == len(NAMES), 60)
    assert back, "not everyone is back"
    alive = {n.name: n.incarnation for n in world.nodes.values()}
    assert {m.name: m.register.incarnation for m in members} == alive


# Not shrunk: each try takes a second, and a story of eight faults can be read as it is.
@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(FAULTS, min_size=1, max_size=8), st.integers(0, 1 << 16))
def test_any_order_of_faults_loses_no_token(faults: list[Fault], seed: int) -> None:
    world = begun(seed)
    for fault in faults:
        plan_fault(world, fault)
    plan_load(world, seed)
    world.run_for(13)
    settle(world)


def test_the_same_seed_is_the_same_story() -> None:
    """A failure that is found can be looked at again."""

    def story() -> list[tuple[float, str]]:
        world = begun(3)
        plan_fault(world, Fault("kill", 1.0, 2.0, "a", "b"))
        plan_fault(world, Fault("stop", 1.5, 4.0, "e", "b"))
        plan_load(world, 3)
        world.run_for(13)
        settle(world)
        assert world.reroutes
        return world.story

    assert story() == story()
