"""The serving model against arithmetic by hand, Little's law, and what more of anything must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.token_return import TokenReturn
from solver.flow import max_flow
from solver.heuristics import petals
from solver.objective import Points, ServingEstimate, ServingModel, StepTimes, Workload, estimate
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode

MakeProblem = Callable[..., Problem]
NO_PREFILL: Points = ((1.0, 0.0), (1e9, 1e-9))


def one_machine(*, kv_token_layers: float = 4_000.0, latency_s: float = 0.02) -> Problem:
    """One node for all four layers; its links carry a token in no time, after their latency."""
    node = ProblemNode(NodeId("a"), "gpu", "", 4, (1e3,) * 4, (kv_token_layers,) * 4, 1e15, 1e15, 1)
    links = (
        ProblemLink(SOURCE, node.name, 1e15, latency_s),
        ProblemLink(node.name, SINK, 1e15, latency_s),
    )
    return Problem("one", 4, 2, 100, (node,), links)


def serve(problem: Problem, placement: Placement, model: ServingModel) -> ServingEstimate:
    return estimate(problem, placement, max_flow(problem, placement), model)


def on_one_machine(
    problem: Problem, times: StepTimes, workload: Workload, way: TokenReturn = "router"
) -> ServingEstimate:
    placement = Placement(4, {NodeId("a"): LayerRange(0, 4)})
    model = ServingModel({"gpu": times}, workload, chunked=False, token_return=way)
    return serve(problem, placement, model)


def test_one_machine_with_room_for_ten_requests() -> None:
    """By hand: room for 4000 / 4 tokens in each layer, 100 a request: ten in flight.

    A pass takes 4 x 10 ms. A row waits half a pass, rides in the next, and travels twice 20 ms:
    100 ms per token. A request of 40 tokens makes the trip 41 times: 4.1 s. Ten at a time give
    10 x 40 / 4.1 tokens/s.
    """
    times = StepTimes(NO_PREFILL, ((1.0, 0.01), (1000.0, 0.01)))
    got = on_one_machine(one_machine(), times, Workload(60.0, 40.0, kv_mark=1.0))
    assert got.round_trip_s == pytest.approx(0.1, rel=1e-6)
    assert got.requests_in_flight == pytest.approx(10.0, rel=1e-6)
    assert got.decode_tokens_per_s == pytest.approx(400 / 4.1, rel=1e-6)
    assert got.limit == "KV room"
    # Feeding itself it is spared both legs of all trips but the first: 40 of 60 ms, one of 100.
    ways: tuple[TokenReturn, ...] = ("auto", "direct")
    for way in ways:
        straight = on_one_machine(one_machine(), times, Workload(60.0, 40.0, kv_mark=1.0), way)
        assert straight.round_trip_s == pytest.approx(0.06, rel=1e-6)
        assert straight.decode_tokens_per_s == pytest.approx(400 / 2.5, rel=1e-6)


def test_the_mark_and_the_lengths_share_out_the_room() -> None:
    times = StepTimes(NO_PREFILL, ((1.0, 0.01), (1000.0, 0.01)))
    half = on_one_machine(one_machine(), times, Workload(60.0, 40.0, kv_mark=0.5))
    long = on_one_machine(one_machine(), times, Workload(160.0, 40.0, kv_mark=1.0))
    assert half.requests_in_flight == pytest.approx(5.0, rel=1e-6)
    assert long.requests_in_flight == pytest.approx(5.0, rel=1e-6)


def test_endless_room_ends_at_what_the_engine_computes() -> None:
    """Largest measured batch: 100 rows in 4 x 10 ms, so 2500 rows/s however many there are."""
    times = StepTimes(NO_PREFILL, ((1.0, 0.001), (100.0, 0.01)))
    got = on_one_machine(one_machine(kv_token_layers=1e12), times, Workload(60.0, 40.0))
    assert got.decode_tokens_per_s == pytest.approx(2500.0, rel=0.01)
    assert got.limit == "always busy"
    assert got.busiest == "a"


def test_prompts_take_their_share_of_the_engine() -> None:
    """A prompt costs 4 x 25 ms per 40 tokens, a token 0.4 ms: 1 / (2.5 + 0.4) ms."""
    times = StepTimes(((1.0, 0.0), (60.0, 0.025)), ((1.0, 0.001), (100.0, 0.01)))
    got = on_one_machine(one_machine(kv_token_layers=1e12), times, Workload(60.0, 40.0))
    assert got.decode_tokens_per_s <= 1 / 0.0029
    assert got.decode_tokens_per_s == pytest.approx(1 / 0.0029, rel=0.05)


def test_a_placement_without_flow_serves_nothing() -> None:
    problem = one_machine()
    times = StepTimes(NO_PREFILL, ((1.0, 0.01), (2.0, 0.01)))
    got = serve(problem, Placement(4, {}), ServingModel({"gpu": times}))
    assert (got.decode_tokens_per_s, got.requests_in_flight) == (0.0, 0.0)
    assert got.limit == "no flow"


STEP_TIMES = {
    f"type-{i}": StepTimes(
        ((1.0, c / 10), (1000.0, 40 * c)), ((1.0, c), (32.0, 2 * c), (256.0, 9 * c))
    )
    for i, c in enumerate((2e-3, 1e-3, 3e-4))
}


def slower(factor: float) -> dict[str, StepTimes]:
    return {
        name: StepTimes(
            tuple((x, y * factor) for x, y in t.prefill),
            tuple((x, y * factor) for x, y in t.decode),
        )
        for name, t in STEP_TIMES.items()
    }


def with_room(problem: Problem, factor: float) -> Problem:
    nodes = tuple(
        replace(n, kv_tokens_by_layers=tuple(factor * x for x in n.kv_tokens_by_layers))
        for n in problem.nodes
    )
    return replace(problem, nodes=nodes)


def with_latency(problem: Problem, factor: float) -> Problem:
    links = tuple(replace(k, latency_s=factor * k.latency_s) for k in problem.links)
    return replace(problem, links=links)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    wide=st.booleans(),
    factor=st.floats(1.01, 20.0),
    way=st.sampled_from(["direct", "router"]),
)
def test_more_room_never_serves_less_and_more_time_never_more(
    make_problem: MakeProblem, seed: int, wide: bool, factor: float, way: TokenReturn
) -> None:
    problem = make_problem(seed, nodes=6, layers=4, wide=wide)
    placement = petals(problem, 0)
    # With `auto` a longer way may pass the limit from which straight is shorter.
    model = ServingModel(STEP_TIMES, Workload(200.0, 50.0), token_return=way)
    base = serve(problem, placement, model)
    more = 1 + 1e-6
    room = serve(with_room(problem, factor), placement, model)
    assert room.decode_tokens_per_s * more >= base.decode_tokens_per_s
    far = serve(with_latency(problem, factor), placement, model)
    assert far.decode_tokens_per_s <= base.decode_tokens_per_s * more
    slow = serve(problem, placement, replace(model, step_times=slower(factor)))
    assert slow.decode_tokens_per_s <= base.decode_tokens_per_s * more


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), wide=st.booleans(), room=st.floats(0.01, 100.0))
def test_littles_law_holds_between_what_is_reported(
    make_problem: MakeProblem, seed: int, wide: bool, room: float
) -> None:
    """Requests in flight = requests/s x their life; a life is a trip per token and one more.

    A prompt's own time on links lengthens a life, so the law gives a lower bound where links are
    slow, and equality where they are wide.
    """
    problem = with_room(make_problem(seed, nodes=6, layers=4, wide=wide), room)
    placement = petals(problem, 0)
    workload = Workload(200.0, 50.0)
    got = serve(problem, placement, ServingModel(STEP_TIMES, workload, token_return="router"))
    if got.decode_tokens_per_s == 0:
        return
    assert math.isfinite(got.round_trip_s)
    rate = got.decode_tokens_per_s / workload.output_tokens
    inside = rate * (workload.output_tokens + 1) * got.round_trip_s
    assert got.requests_in_flight >= inside * (1 - 1e-6)
    if wide:
        assert got.requests_in_flight == pytest.approx(inside, rel=1e-3)
    held = [0.0] * problem.num_layers
    for node in problem.nodes:
        layers = placement.slices.get(node.name)
        if layers is not None:
            for layer in range(layers.first, layers.end):
                held[layer] += node.kv_tokens_by_layers[len(layers) - 1] / len(layers)
    fit = workload.kv_mark * min(held) / (workload.input_tokens + workload.output_tokens)
    assert got.requests_in_flight <= fit * (1 + 1e-9)


def test_a_type_without_step_times_is_named() -> None:
    with pytest.raises(ConfigError, match="node a: no step times for machine type gpu") as error:
        serve(one_machine(), Placement(4, {NodeId("a"): LayerRange(0, 4)}), ServingModel({}))
    assert error.value.param == "step_times"


def test_unknown_room_is_named() -> None:
    problem = one_machine()
    nodes = tuple(replace(n, kv_tokens_by_layers=()) for n in problem.nodes)
    times = StepTimes(NO_PREFILL, ((1.0, 0.01), (2.0, 0.01)))
    with pytest.raises(ConfigError, match="node a: KV room for 4 layers") as error:
        on_one_machine(replace(problem, nodes=nodes), times, Workload())
    assert error.value.param == "kv_tokens"


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "kv_mark"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_workload_of_nothing_or_without_end_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        Workload(**{field: value})
    assert error.value.param == field


def test_lengths_beyond_any_context_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"input_tokens=1e\+09 is not in 1..1,000,000"):
        Workload(input_tokens=1e9)


GOOD: Points = ((1.0, 0.01), (2.0, 0.02))


@pytest.mark.parametrize(
    "points",
    [
        (),
        ((1.0, 0.01),),
        ((2.0, 0.01), (1.0, 0.02)),
        ((1.0, 0.01), (1.0, 0.02)),
        ((1.0, 0.0), (2.0, 0.0)),
        ((1.0, -0.01), (2.0, 0.02)),
        ((1.0, math.nan), (2.0, 0.02)),
        ((1.0, 0.01), (2.0, math.inf)),
        ((0.0, 0.01), (math.inf, 0.02)),
        ((math.nan, 0.01), (2.0, 0.02)),
        ((-1.0, 0.01), (2.0, 0.02)),
    ],
)
def test_step_times_that_mean_nothing_are_refused(points: Points) -> None:
    with pytest.raises(ConfigError) as error:
        StepTimes(points, GOOD)
    assert error.value.param == "prefill"
    with pytest.raises(ConfigError) as error:
        StepTimes(GOOD, points)
    assert error.value.param == "decode"


def test_chunks_let_decodes_by() -> None:
    """By hand, one machine of four layers, 10 ms each a pass and 0.1 ms a prompt token.

    A chunk is 150 tokens: 4 x 15 ms. In flight 10 requests of 1,000 and 100 tokens at room for 10
    x 1,100. Whole, each prompt is 400 ms in which no decode runs; in chunks no more than 60.
    """
    times = StepTimes(((100.0, 0.01), (1000.0, 0.1)), ((1.0, 0.01), (1000.0, 0.01)))
    workload = Workload(1000.0, 100.0, kv_mark=1.0)
    problem = one_machine(kv_token_layers=4 * 10 * 1100.0)
    placement = Placement(4, {NodeId("a"): LayerRange(0, 4)})
    whole, chunks = (
        serve(
            problem,
            placement,
            ServingModel({"gpu": times}, workload, chunked=chunked, token_return="router"),
        )
        for chunked in (False, True)
    )
    assert chunks.decode_tokens_per_s > 1.2 * whole.decode_tokens_per_s
    prompts_per_s = chunks.decode_tokens_per_s / 100
    chunk_s, busy = 4 * 0.015, prompts_per_s * (1000 / 150) * 4 * 0.015
    pass_s = 4 * 0.01 / (1 - busy)
    met_s = pass_s + busy * chunk_s
    by_hand = met_s / 2 + 4 * 0.01 + busy * met_s + 2 * 0.02
    assert chunks.round_trip_s == pytest.approx(by_hand, rel=0.02)
