"""The roofline: laws it must obey for any model and machine, and how near it is to measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.planner_roofline import MODELS, medians, points, table_errors
from helix_mq.errors import ConfigError
from helix_mq.models.config import Family, ModelConfig
from solver.catalogue import GPU_TYPES, MACHINE_SIZES, Machine
from solver.roofline import LayerRoofline, step_times
from solver.typical import kv_token_layers, max_layers, typical_tokens_per_s

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
    hidden = head_dim * heads
    return ModelConfig(
        family=Family.LLAMA,
        num_layers=draw(st.integers(1, 126)),
        hidden_size=hidden,
        intermediate_size=hidden * draw(st.integers(1, 4)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=draw(st.sampled_from([1000, 32_000, 128_256])),
        max_context=8192,
        rms_eps=1e-5,
        rope_theta=1e4,
        eos_ids=(2,),
    )


@given(configs(), MACHINES, st.integers(1, 8192), st.integers(1, 8192), st.integers(1, 8192))
def test_more_work_takes_no_less_time_but_less_for_each(
    config: ModelConfig, machine: Machine, a: int, b: int, context: int
) -> None:
    few, many = sorted((a, b))
    layer = LayerRoofline(config, machine)
    assert 0 < layer.prefill_s(few) <= layer.prefill_s(many)
    assert 0 < layer.decode_s(few, context) <= layer.decode_s(many, context)
    assert layer.decode_s(many, context) / many <= layer.decode_s(few, context) / few * (1 + 1e-9)
    assert layer.decode_s(few, context) <= layer.decode_s(few, context + 1)


@given(configs(), st.sampled_from(["A100-40", "A100-80", "H100", "H200", "B200"]))
def test_more_devices_are_no_slower_with_nvlink_in_long_prompts(
    config: ModelConfig, name: str
) -> None:
    tokens = 8192
    times = [LayerRoofline(config, Machine(GPU_TYPES[name], n)).prefill_s(tokens) for n in (2, 4)]
    one = LayerRoofline(config, Machine(GPU_TYPES[name], 1)).prefill_s(tokens)
    exchange_bound = config.hidden_size < 4096
    assert exchange_bound or one >= times[0] >= times[1]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_no_work_is_no_question(value: float) -> None:
    layer = LayerRoofline(MODELS["llama70b"], Machine(GPU_TYPES["L4"]))
    for call in (
        lambda: layer.prefill_s(value),
        lambda: layer.decode_s(value, 100),
        lambda: layer.decode_s(1, value),
    ):
        with pytest.raises(ConfigError, match="positive"):
            call()


def test_one_decode_takes_the_weights_over_the_bandwidth() -> None:
    """By hand: 70B's layer is 0.856e9 weights; 16 bit over 77 % of 300 GB/s, and 50 us."""
    config = MODELS["llama70b"]
    weights = 8192 * (8192 + 8192 + 1024 + 1024) + 3 * 8192 * 28672 + 2 * 8192
    layer = LayerRoofline(config, Machine(GPU_TYPES["L4"]))
    by_hand = weights * 2 / (300e9 * 0.77) + 0.05e-3
    assert layer.decode_s(1, 1) == pytest.approx(by_hand, rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(configs(), st.lists(MACHINES, min_size=1, max_size=3, unique_by=lambda m: m.name), st.data())
def test_tables_are_whole_positive_and_falling(
    config: ModelConfig, machines: list[Machine], data: st.DataObject
) -> None:
    counts = {m.name: data.draw(st.integers(0, 40)) for m in machines}
    times = {m.name: step_times(config, m) for m in machines}
    vram = {m.name: m.vram_bytes for m in machines}
    tables = typical_tokens_per_s(config, times, counts, vram)
    for machine in machines:
        held = max_layers(config, machine)
        room = kv_token_layers(config, machine)
        table = tables[machine.name]
        assert 0 <= held <= config.num_layers
        assert len(room) == len(table) == held
        assert all(tokens > 0 for tokens in room)
        assert list(room) == sorted(room, reverse=True)
        assert all(rate > 0 for rate in table)
        assert list(table) == sorted(table, reverse=True)


def test_a_machine_too_small_for_a_layer_holds_none() -> None:
    config = MODELS["llama70b"]
    assert max_layers(config, 10**9) == 0
    assert kv_token_layers(config, 10**9) == ()
    times = {"tiny": step_times(config, Machine(GPU_TYPES["T4"]))}
    assert typical_tokens_per_s(config, times, {"tiny": 3}, {"tiny": 10**9}) == {"tiny": ()}


@needs_reference
def test_the_median_error_against_measurements_is_far_below_a_quarter() -> None:
    found = points(REFERENCE)
    assert len(found) > 1000
    for name, error in medians(found).items():
        assert error <= 0.25, name


@needs_reference
def test_tables_are_near_the_published_ones() -> None:
    for error in table_errors(REFERENCE):
        assert error.median <= 0.25, error
