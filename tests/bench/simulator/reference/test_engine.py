"""Timelines worked out by hand: march order, limits, links that send one at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.simulator.reference.cases import Mode, SchedulerKind
from bench.simulator.reference.queries import Query
from bench.simulator.reference.reading import ReferenceDataError
from bench.simulator.reference.run import ReferenceResult, RunOptions, simulate
from bench.simulator.reference.setup import Limits, Setup

BuildSetup = Callable[..., Setup]
COPY_S = 998 * (1 / 4e9 + 1 / 5e9)
"""Copy of one arrived token to the device."""

ONLINE = RunOptions(SchedulerKind.RANDOM, Mode.ONLINE, warmup_s=0.0, duration_s=1000.0)


def latencies(result: ReferenceResult) -> tuple[float, float]:
    """The least and the greatest prompt latency."""
    return result.prompt_latency.percentiles_s["p5"], result.prompt_latency.max_s


def test_one_query_through_two_nodes(build_setup: BuildSetup) -> None:
    setup = build_setup([(0, 2), (2, 3)])
    result = simulate(setup, [Query(10, 2)], ONLINE)
    prompt = (
        (10 * 2e-6 + 0.01)  # ids to the first node
        + (2 * 0.010 + 10 * COPY_S)  # two layers of ten tokens
        + (10 * 0.001 + 0.01)  # activations, 1 ms a token
        + (0.010 + 10 * COPY_S)
        + (10 * 2e-6 + 0.01)
    )
    decode = (2e-6 + 0.01) + (0.004 + COPY_S) + (0.001 + 0.01) + (0.002 + COPY_S) + (2e-6 + 0.01)
    assert latencies(result) == pytest.approx((prompt, prompt), rel=1e-12)
    assert result.decode_latency.mean_s == pytest.approx(decode, rel=1e-12)
    assert (result.finished_prompts, result.finished_decodes, result.finished_queries) == (1, 2, 1)
    assert result.simulated_s == pytest.approx(prompt + 2 * decode, rel=1e-12)


def test_a_node_finishes_its_walk_before_it_takes_what_arrived_meanwhile(
    build_setup: BuildSetup,
) -> None:
    setup = build_setup([(0, 2)])
    first_s = 100 * 2e-6 + 0.01
    result = simulate(setup, [Query(100, 1), Query(50, 1, arrival_s=0.05)], ONLINE)
    walk_s = 0.2 + 100 * COPY_S
    first = first_s + walk_s + (100 * 2e-6 + 0.01)
    # The second waits at layer 0 while the first goes on to layer 1. The first's decode comes back
    # during the second's walk, so it does not slow it.
    second = first_s + walk_s + (0.1 + 50 * COPY_S) + (50 * 2e-6 + 0.01) - 0.05
    assert latencies(result) == pytest.approx(tuple(sorted((first, second))), rel=1e-12)


def test_a_prompt_over_the_limit_is_skipped_and_its_arrival_paid_once(
    build_setup: BuildSetup,
) -> None:
    one_prompt = Limits(1, 1000, 100, 100_000)
    setup = build_setup([(0, 1)], limits=one_prompt)
    queries = [Query(300, 1), Query(100, 1, arrival_s=0.1), Query(40, 1, arrival_s=0.2)]
    result = simulate(setup, queries, ONLINE)
    in_s, out_s = 2e-6, 2e-6
    end_0 = 300 * in_s + 0.01 + 0.3 + 300 * COPY_S
    end_1 = end_0 + 0.1 + 140 * COPY_S  # pays for the third as well, which has to wait
    end_2 = end_1 + 0.04 + 0.002 + 1 * COPY_S  # the first's decode has joined, the third is paid
    assert end_0 + 300 * out_s + 0.02 + 2e-6 < end_1
    assert result.prompt_latency.max_s == pytest.approx(end_0 + 300 * out_s + 0.01, rel=1e-12)
    least = min(end_1 + 100 * out_s + 0.01 - 0.1, end_2 + 40 * out_s + 0.01 - 0.2)
    assert result.prompt_latency.percentiles_s["p5"] == pytest.approx(least, rel=1e-12)


def test_a_link_sends_one_after_another_and_first_come_first_served(
    build_setup: BuildSetup,
) -> None:
    setup = build_setup([(0, 1), (1, 2)])
    result = simulate(setup, [Query(50, 1), Query(60, 1, arrival_s=0.02)], ONLINE)
    a_0 = 50 * 2e-6 + 0.01 + 0.05 + 50 * COPY_S
    a_1 = a_0 + 0.06 + 60 * COPY_S  # on the second node's link while the first is long gone
    b_0 = a_0 + 0.05 + 0.01 + 0.05 + 50 * COPY_S
    b_1 = max(a_1 + 0.06 + 0.01, b_0) + 0.06 + 60 * COPY_S
    expected = (b_0 + 50 * 2e-6 + 0.01, b_1 + 60 * 2e-6 + 0.01 - 0.02)
    assert latencies(result) == pytest.approx(tuple(sorted(expected)), rel=1e-12)


def test_prompts_leaving_together_queue_on_the_link(build_setup: BuildSetup) -> None:
    setup = build_setup([(0, 1), (1, 2)])
    queries = [Query(100, 1), Query(10, 1, arrival_s=0.03), Query(20, 1, arrival_s=0.04)]
    result = simulate(setup, queries, ONLINE)
    a_0 = 100 * 2e-6 + 0.01 + 0.1 + 100 * COPY_S
    a_12 = a_0 + 0.03 + 30 * COPY_S  # both in one batch
    free_0 = a_0 + 0.1
    at_1 = free_0 + 0.01 + 0.01  # they wait for the first prompt's 100 ms on the link
    at_2 = free_0 + 0.01 + 0.02 + 0.01
    assert a_12 < free_0
    b_0 = free_0 + 0.01 + 0.1 + 100 * COPY_S
    assert max(at_1, at_2) < b_0
    b_12 = b_0 + 0.03 + 30 * COPY_S
    # Both leave in one batch, in order: the third's ids follow the second's.
    slowest = b_12 + 30 * 2e-6 + 0.01 - 0.04
    second = b_12 + 10 * 2e-6 + 0.01 - 0.03
    first = b_0 + 100 * 2e-6 + 0.01
    low, high = latencies(result)
    assert (low, high) == pytest.approx(
        (min(first, second, slowest), max(first, second, slowest)), rel=1e-12
    )


def test_a_prompt_no_node_can_batch_is_an_error(build_setup: BuildSetup) -> None:
    setup = build_setup([(0, 1)], limits=Limits(1, 100, 100, 100_000))
    with pytest.raises(ReferenceDataError, match="larger than the node may ever batch"):
        simulate(setup, [Query(101, 1)], ONLINE)


def test_offline_keeps_its_number_in_flight_and_refills_after_a_tenth(
    build_setup: BuildSetup,
) -> None:
    setup = build_setup([(0, 1)], start_s=5.0)
    options = RunOptions(SchedulerKind.RANDOM, Mode.OFFLINE, 0.0, 10.0, in_flight=1)
    result = simulate(setup, [Query(10, 1)] * 1000, options)
    prompt = 2 * (10 * 2e-6 + 0.01) + 0.010 + 10 * COPY_S
    decode = 2 * (2e-6 + 0.01) + 0.002 + COPY_S
    assert result.finished_queries == int((10.0 + 0.1) / (prompt + decode + 0.1))
