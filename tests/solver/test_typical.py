"""Layers that fit, KV room and typical rates: laws for any model and mix, and published tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.planner_roofline import MODELS, layer_limits, table_errors
from helix_mq.errors import ConfigError
from helix_mq.models.config import Family, ModelConfig
from solver.catalogue import GPU_TYPES, MACHINE_SIZES, Machine
from solver.objective import StepTimes, Workload
from solver.roofline import step_times
from solver.typical import (
    TypeTables,
    kv_token_layers,
    max_layers,
    seconds_at,
    typical_by_tables,
    typical_tokens_per_s,
)

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published measurements are not beside the project"
)

MACHINES = st.sampled_from(
    [
        Machine(gpu, count)
        for gpu in GPU_TYPES.values()
        for count in MACHINE_SIZES
        if count == 1 or gpu.name != "cpu"
    ]
)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any Llama-like model: 64 to 16,384 wide, grouped heads or not."""
    head_dim = draw(st.sampled_from([64, 128]))
    kv_heads = draw(st.sampled_from([1, 2, 8, 16]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 8]))
    return ModelConfig(
        family=Family.LLAMA,
        num_layers=draw(st.integers(1, 126)),
        hidden_size=head_dim * heads,
        intermediate_size=head_dim * heads * draw(st.integers(1, 4)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=draw(st.sampled_from([1000, 32_000, 128_256])),
        max_context=8192,
        rms_eps=1e-5,
        rope_theta=1e4,
        eos_ids=(2,),
    )


@settings(max_examples=50, deadline=None)
@given(configs(), st.lists(MACHINES, min_size=1, max_size=3, unique_by=lambda m: m.name), st.data())
def test_tables_are_as_long_as_layers_fit_and_within_what_a_full_batch_gives(
    config: ModelConfig, machines: list[Machine], data: st.DataObject
) -> None:
    counts = {m.name: data.draw(st.integers(0, 40)) for m in machines}
    times = {m.name: step_times(config, m) for m in machines}
    vram = {m.name: m.vram_bytes for m in machines}
    tables = typical_tokens_per_s(config, times, counts, vram)
    work = Workload()
    for machine in machines:
        room, table = kv_token_layers(config, machine), tables[machine.name]
        assert len(room) == len(table) == max_layers(config, machine) <= config.num_layers
        assert all(tokens > 0 for tokens in room)
        assert list(room) == sorted(room, reverse=True)
        # One layer's prefill of a prompt, and its decodes in the largest batch, take this at least.
        prefill_s = seconds_at(times[machine.name].prefill, work.input_tokens)
        full_s = prefill_s + seconds_at(times[machine.name].decode, work.output_tokens)
        most = (work.input_tokens + work.output_tokens) / full_s
        for held, rate in enumerate(table, start=1):
            assert 0 < rate <= most / held * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(configs(), MACHINES, st.integers(1, 40))
def test_rates_fall_with_layers_where_all_machines_are_alike(
    config: ModelConfig, machine: Machine, count: int
) -> None:
    times = {"m": step_times(config, machine)}
    table = typical_tokens_per_s(config, times, {"m": count}, {"m": machine.vram_bytes})["m"]
    assert list(table) == sorted(table, reverse=True)


@given(configs(), st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0.01, 1))
def test_more_memory_holds_no_less(
    config: ModelConfig, one: int, other: int, weights_share: float
) -> None:
    less, more = sorted((one, other))
    assert 0 <= max_layers(config, less) <= max_layers(config, more) <= config.num_layers
    assert max_layers(config, more, weights_share) <= max_layers(config, more)
    for few, many in zip(
        kv_token_layers(config, less), kv_token_layers(config, more), strict=False
    ):
        assert few <= many


def test_a_machine_too_small_for_a_layer_holds_none_and_leaves_others_alone() -> None:
    config = MODELS["llama70b"]
    assert max_layers(config, 10**9) == 0
    assert kv_token_layers(config, 10**9) == ()
    t4 = step_times(config, Machine(GPU_TYPES["T4"]))
    times, vram = {"tiny": t4, "T4": t4}, {"tiny": 10**9, "T4": 16 * 10**9}
    assert typical_tokens_per_s(config, times, {"tiny": 3}, vram) == {"tiny": ()}
    alone = typical_tokens_per_s(config, times, {"T4": 20}, vram)
    assert typical_tokens_per_s(config, times, {"T4": 20, "tiny": 3}, vram) == {**alone, "tiny": ()}


def test_kv_room_by_hand() -> None:
    """80 % of 24 GB less three layers of 855.7e6 weights; 4,096 bytes of KV per token and layer."""
    config = MODELS["llama70b"]
    weights = 8192 * (8192 + 8192 + 1024 + 1024) + 3 * 8192 * 28672 + 2 * 8192
    by_hand = (0.8 * 24e9 - 3 * weights * 2) // 4096
    assert kv_token_layers(config, Machine(GPU_TYPES["L4"]))[2] == by_hand


def test_rate_by_hand_where_all_machines_are_alike() -> None:
    """Share k/L of the round trip, whatever the layer times: 0.3 x 528,000 / 990 / 4 = 40 requests.

    An empty step has probability e^-40. Prefill 0.75 s; 240 tokens in steps of 0.1 s for 40 rows:
    0.6 s. So one layer passes 990 / 1.35 tokens/s.
    """
    times = StepTimes(prefill=((0, 0), (1000, 1)), decode=((0, 0.1), (1000, 0.1)))
    tables = {"m": TypeTables(times, (528_000.0, 528_000.0), 2)}
    rates = typical_by_tables(4, tables)["m"]
    assert rates == pytest.approx((990 / 1.35, 990 / 1.35 / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "vram"), [({"m": 1}, {}), ({"n": 1}, {"n": 1}), ({"m": -1}, {"m": 24 * 10**9})]
)
def test_what_is_missing_or_negative_is_refused(
    counts: dict[str, int], vram: dict[str, int]
) -> None:
    config = MODELS["llama70b"]
    times = {"m": step_times(config, Machine(GPU_TYPES["L4"]))}
    with pytest.raises(ConfigError, match="machine type"):
        typical_tokens_per_s(config, times, counts, vram)


@needs_reference
def test_tables_are_near_the_published_ones() -> None:
    errors = list(table_errors(REFERENCE))
    assert len({e.cluster for e in errors}) >= 17
    assert {e.machine for e in errors} == {"A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4"}
    for error in errors:
        assert error.median <= 0.25, error


@needs_reference
def test_layers_that_fit_with_weights_in_half_the_memory_are_the_published_ones() -> None:
    limits = layer_limits(REFERENCE)
    assert len(limits) == 10
    for limit in limits:
        assert abs(limit.half_of_memory - limit.published) <= 1, limit
        assert limit.ours >= limit.half_of_memory, limit
