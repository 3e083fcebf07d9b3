"""Faults in any order where every feature is on: drafts, tokens that go back directly, prompts that
begin alike and are kept, prompts in pieces and in several steps.

As test_fault_orders, with nodes that run the production worker and engine around a played model.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helix_mq.ids import ROUTER
from helix_mq.token_return import TokenReturn
from tests.router.test_fault_orders import NAMES, SECONDS, Fault, plan_fault, plan_load, settle
from tests.router.working_world import WorkingWorld

KINDS = (
    *("kill", "restart", "stop", "drain", "cut", "isolate", "control", "tokens", "squeeze"),
    *("step", "pages", "router", "place", "place"),
)
FAULTS = st.builds(
    Fault,
    st.sampled_from(KINDS),
    SECONDS,
    SECONDS,
    st.sampled_from(NAMES),
    st.sampled_from([*NAMES, ROUTER]),
)
RETURNS = st.sampled_from(["direct", "router"])
PAGES = st.sampled_from([120, 600])
"""Of a node; of the fewer, kept beginnings are soon driven out, and requests outgrow their room."""


def begun(seed: int, token_return: TokenReturn, pages: int) -> WorkingWorld:
    world = WorkingWorld(seed, token_return, pages)
    members = world.core.cluster.membership
    assert world.run_until(lambda: len(members.serving()) == len(NAMES), 10)
    return world


def plan(world: WorkingWorld, fault: Fault) -> None:
    match fault.what:
        case "step":
            world.later(fault.at_s, lambda: world.break_step(fault.node))
        case "pages":
            world.later(fault.at_s, lambda: world.move_pages(fault.node))
        case "place":
            world.later(fault.at_s, world.place)
        case "router":
            world.later(fault.at_s, world.restart_router)
        case _:
            plan_fault(world, fault)


def settle_work(world: WorkingWorld, *, all_placed: bool = True) -> None:
    settle(world, all_placed=all_placed)
    for node in world.working:
        assert node.unconsumed == 0, f"{node.name} keeps the credit of frames"
        for slice_ in (*node.slices, *node.freed):
            slice_.check_empty()


@pytest.mark.parametrize("token_return", ["direct", "router"])
def test_undisturbed_every_feature_is_at_work(token_return: TokenReturn) -> None:
    world = begun(5, token_return, 600)
    plan_load(world, 5)
    world.run_for(7)
    settle_work(world)
    statistics = world.core.statistics()
    assert world.reroutes == statistics.prefixes.misses == 0
    assert statistics.prefixes.hit_tokens > 200
    verified = sum(s.model.drafts for node in world.working for s in node.slices)
    # What was guessed beyond a stop string came back to nobody.
    assert 100 < statistics.drafts.accepted <= statistics.drafts.drafted <= verified


# Not shrunk: each try takes a second, and a story of eight faults can be read as it is.
@settings(
    max_examples=8,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(FAULTS, min_size=1, max_size=8), st.integers(0, 1 << 16), RETURNS, PAGES)
def test_any_order_of_faults_loses_no_token(
    faults: list[Fault], seed: int, token_return: TokenReturn, pages: int
) -> None:
    world = begun(seed, token_return, pages)
    for fault in faults:
        plan(world, fault)
    plan_load(world, seed)
    world.run_for(13)
    settle_work(world, all_placed=not any(fault.what == "place" for fault in faults))
