"""The live cluster as a planning problem, and the search for its placement in another process."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.messages.control import StepTimes as WireTimes
from helix_mq.models.quantisation import WeightForm
from router.kept_placement import kept_placement, placement_bytes
from router.live_problem import LEAST_KV_TOKENS, LinkSpeed, LiveMachine, kv_room, live_problem
from router.machines import catalogued, machine_of
from router.membership import Member
from router.planning import PlanningProcess, search
from router.searches import Found, NothingFound, Search
from solver.objective import StepTimes
from solver.verify import verify
from tests.router.world import CONFIG, register

FAST = StepTimes(((1.0, 1e-3), (256.0, 1e-2)), ((1.0, 1e-3), (64.0, 2e-3)))
ROOMY = 1 << 21
"""Bytes: the whole of CONFIG's model and KV besides."""
KV_BYTES = CONFIG.kv_bytes_per_token_per_layer(4) * LEAST_KV_TOKENS
FLOAT32 = WeightForm(4)
TIGHT = int((CONFIG.slice_weight_bytes(LayerRange(3, 6), 4) + 3.5 * KV_BYTES) / 0.9)
"""Three layers at either end, with as much KV room as counts."""


def no_link(source: NodeId, target: NodeId) -> LinkSpeed | None:
    return None


def machine(name: str, memory: int = ROOMY, slowdown: float = 1.0) -> LiveMachine:
    return LiveMachine(NodeId(name), memory, 4, FAST, slowdown)


def test_alike_nodes_are_one_kind_and_a_slowed_one_is_another() -> None:
    machines = [machine("a"), machine("b"), machine("c", slowdown=3.0)]
    problem = live_problem(CONFIG, machines, no_link)
    kinds = [node.type_name for node in problem.nodes]
    assert kinds[0] == kinds[1] != kinds[2]
    fast, slow = problem.nodes[0].tokens_per_s(2), problem.nodes[2].tokens_per_s(2)
    assert 2 * slow < fast < 3.2 * slow


def test_measured_links_replace_what_is_assumed() -> None:
    def known(source: NodeId, target: NodeId) -> LinkSpeed | None:
        return LinkSpeed(1e6, 0.04) if (source, target) == (ROUTER, "a") else None

    problem = live_problem(CONFIG, [machine("a"), machine("b")], known)
    speeds = {(k.src, k.dst): (k.bytes_per_s, k.latency_s) for k in problem.links}
    assert speeds["@source", "a"] == (1e6, 0.04)  # type: ignore[index]
    assert speeds["a", "b"][0] > 1e8  # type: ignore[index]


def test_room_counts_the_dtype_and_the_larger_end() -> None:
    assert len(kv_room(CONFIG, ROOMY, FLOAT32)) == CONFIG.num_layers
    half = kv_room(CONFIG, TIGHT, FLOAT32)
    assert 0 < len(half) < CONFIG.num_layers
    assert len(kv_room(CONFIG, TIGHT, WeightForm(2))) > len(half)
    assert kv_room(CONFIG, 1000, FLOAT32) == ()


@settings(max_examples=15, deadline=None)
@given(
    memories=st.lists(st.sampled_from([TIGHT // 2, TIGHT, ROOMY]), min_size=1, max_size=4),
    slow=st.sampled_from([1.0, 2.5]),
)
def test_what_is_found_holds_on_the_problem_it_was_found_for(
    memories: list[int], slow: float
) -> None:
    machines = [machine(f"n{i}", m, slow if i else 1.0) for i, m in enumerate(memories)]
    problem = live_problem(CONFIG, machines, no_link)
    # It ends by itself, in less than a second on a machine that is not slow.
    found = search(Search(problem, None, 60.0))
    if isinstance(found, NothingFound):
        room = sum(len(kv_room(CONFIG, m, FLOAT32)) for m in memories)
        assert room < CONFIG.num_layers
        return
    placement = Placement(CONFIG.num_layers, found.slices)
    assert verify(problem, placement).ok
    assert found.tokens_per_s > 0


@pytest.mark.alone
async def test_the_search_runs_in_another_process_and_compares_with_the_present() -> None:
    problem = live_problem(CONFIG, [machine("a"), machine("b")], no_link)
    now = Placement(6, {NodeId("a"): LayerRange(0, 6)})
    planning = PlanningProcess()
    try:
        found = await planning.search(Search(problem, now, 60.0))
        assert isinstance(found, Found)
        assert found.tokens_per_s > 1.5 * found.now_tokens_per_s > 0
    finally:
        planning.close()


@pytest.mark.alone
async def test_a_planning_process_that_dies_costs_its_search_and_no_more() -> None:
    problem = live_problem(CONFIG, [machine("a", TIGHT), machine("b", TIGHT)], no_link)
    planning = PlanningProcess()
    try:
        assert not isinstance(await planning.search(Search(problem, None, 0.1)), Exception)
        one = asyncio.ensure_future(planning.search(Search(problem, None, 30.0)))
        await asyncio.sleep(0)
        planning.close()
        answer = await one
        assert isinstance(answer, NothingFound)
        assert "died" in answer.reason
        again = await planning.search(Search(problem, None, 0.5))
        assert isinstance(again, Found | NothingFound)
    finally:
        planning.close()


async def test_what_had_not_begun_when_the_process_was_ended_is_answered() -> None:
    """close() takes back what waits; that must not look as if somebody had cancelled its task."""
    planning = PlanningProcess()
    problem = live_problem(CONFIG, [machine("a"), machine("b")], no_link)
    waiting = [asyncio.ensure_future(planning.search(Search(problem, None, 30.0))) for _ in "abcd"]
    await asyncio.sleep(0)
    planning.close()
    for answer in await asyncio.gather(*waiting):
        assert isinstance(answer, NothingFound)
        assert "died" in answer.reason


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("cuda:0 NVIDIA H200", "H200"),
        ("cuda:1 NVIDIA A100-SXM4-80GB", "A100-80"),
        ("cuda:0 NVIDIA A100-SXM4-40GB", "A100-40"),
        ("cuda:0 NVIDIA H100 80GB HBM3", "H100"),
        ("cuda:0 Tesla T4", "T4"),
        ("cuda:0 NVIDIA L4", "L4"),
        ("cuda:0 NVIDIA GeForce RTX 4090", "RTX4090"),
        ("cuda:0 NVIDIA L40S", "L40S"),
        ("cuda:0 Imaginary 9000", None),
        ("cpu AMD EPYC (2 threads)", None),
    ],
)
def test_gpus_are_known_by_what_their_driver_calls_them(device: str, name: str | None) -> None:
    found = catalogued(device)
    assert (found.gpu.name if found is not None else None) == name


def test_measurements_come_before_the_catalogue_and_nonsense_counts_as_none() -> None:
    from msgspec.structs import replace

    times = WireTimes(((1.0, 1e-3), (16.0, 4e-3)), ((1.0, 1e-3), (2.0, 1.5e-3)))
    gpu = replace(register("a", 1), device="cuda:0 NVIDIA H200")
    catalogue = machine_of(Member(gpu, 0.0), CONFIG, 1.0)
    own = machine_of(Member(replace(gpu, times=times), 0.0), CONFIG, 1.0)
    assert catalogue is not None
    assert own is not None
    assert own.times.prefill == times.prefill
    assert catalogue.times != own.times
    falling = WireTimes(((16.0, 1e-3), (1.0, 4e-3)), times.decode)
    cpu = replace(register("a", 1), times=falling)
    assert machine_of(Member(cpu, 0.0), CONFIG, 1.0) is None


PLACEMENTS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda r: r[0] < r[1]),
    max_size=4,
)


@given(PLACEMENTS)
def test_a_kept_placement_comes_back_whole_or_not_at_all(
    ranges: dict[str, tuple[int, int]],
) -> None:
    slices = {NodeId(n): LayerRange(*r) for n, r in ranges.items()}
    back = kept_placement(placement_bytes(slices), 6)
    assert back == (slices if not Placement(6, slices).missing() else None)
    assert kept_placement(placement_bytes(slices), 7) is None


@given(st.binary(max_size=60))
def test_what_is_no_placement_is_none(content: bytes) -> None:
    assert kept_placement(content, 6) is None
