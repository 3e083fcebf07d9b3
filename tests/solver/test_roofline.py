"""The roofline: laws it must obey for any model and machine, and how near it is to measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.planner_roofline import (
    MODELS,
    Measured,
    fitted,
    held_out,
    medians,
    points,
    predicted,
)
from helix_mq.errors import ConfigError
from helix_mq.models.config import Family, ModelConfig
from solver.catalogue import GPU_TYPES, MACHINE_SIZES, Machine
from solver.objective import Workload
from solver.roofline import Calibration, LayerRoofline, step_times

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
def configs(draw: st.DrawFn, kv_heads: tuple[int, ...] = (1, 2, 8, 16)) -> ModelConfig:
    """Any Llama-like model: 64 wide and up, grouped heads or not."""
    head_dim = draw(st.sampled_from([64, 128]))
    kv = draw(st.sampled_from(kv_heads))
    heads = kv * draw(st.sampled_from([1, 2, 8]))
    hidden = head_dim * heads
    return ModelConfig(
        family=Family.LLAMA,
        num_layers=draw(st.integers(1, 126)),
        hidden_size=hidden,
        intermediate_size=hidden * draw(st.integers(1, 4)),
        num_heads=heads,
        num_kv_heads=kv,
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


@given(
    configs(kv_heads=(32, 64)),
    st.sampled_from(sorted(name for name, gpu in GPU_TYPES.items() if gpu.nvlink_bytes_per_s > 0)),
    st.integers(4096, 16384),
)
def test_more_devices_are_no_slower_with_nvlink_in_long_prompts(
    config: ModelConfig, name: str, tokens: int
) -> None:
    """Of models 2,048 wide or more: narrower ones spend longer on the exchange than they save.

    By hand for B200: per token and layer of width h, halving 10 h^2 operations at 74 % of 2.25e15/s
    saves 3.0e-15 h^2 s, and the ring's 4 h bytes take 5.9e-12 h s at 75 % of 900 GB/s.
    """
    times = [LayerRoofline(config, Machine(GPU_TYPES[name], n)).prefill_s(tokens) for n in (1, 2)]
    times += [LayerRoofline(config, Machine(GPU_TYPES[name], n)).prefill_s(tokens) for n in (4, 8)]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_no_work_is_no_question(value: float) -> None:
    layer = LayerRoofline(MODELS["llama70b"], Machine(GPU_TYPES["L4"]))
    with pytest.raises(ConfigError, match="positive"):
        layer.prefill_s(value)
    with pytest.raises(ConfigError, match="positive"):
        layer.decode_s(value, 100)
    with pytest.raises(ConfigError, match="positive"):
        layer.decode_s(1, value)


def test_one_decode_takes_the_weights_over_the_bandwidth() -> None:
    """By hand: 70B's layer is 0.856e9 weights; 16 bit over 77 % of 300 GB/s, and 50 us."""
    config = MODELS["llama70b"]
    weights = 8192 * (8192 + 8192 + 1024 + 1024) + 3 * 8192 * 28672 + 2 * 8192
    layer = LayerRoofline(config, Machine(GPU_TYPES["L4"]))
    by_hand = weights * 2 / (300e9 * 0.77) + 0.05e-3
    assert layer.decode_s(1, 1) == pytest.approx(by_hand, rel=1e-3)


@given(configs(), MACHINES)
def test_tables_say_what_the_formulas_say(config: ModelConfig, machine: Machine) -> None:
    layer, times = LayerRoofline(config, machine), step_times(config, machine, Workload(300, 100))
    assert all(seconds == layer.prefill_s(n, 300) for n, seconds in times.prefill)
    assert all(seconds == layer.decode_s(n, 350) for n, seconds in times.decode)


def made_up(calibration: Calibration) -> list[Measured]:
    """What machines would measure that are just as `calibration` says."""
    asked = [
        Measured(model, name, phase, float(batch), 1.0)
        for model in sorted(MODELS)
        for name in ("A100", "V100", "L4", "T4", "L4x2")
        for phase in ("prefill", "decode")
        for batch in (2, 30, 400, 2000)
    ]
    return [replace(p.measured, seconds=p.roofline_s) for p in predicted(asked, calibration)]


def test_the_fit_finds_constants_that_nothing_told_it() -> None:
    truth = Calibration(
        compute=0.56,
        low_power_compute=0.34,
        memory=0.62,
        pcie_bytes_per_s=6.5e9,
        overhead_s=0.1e-3,
    )
    found = fitted(made_up(truth))
    assert found.compute == pytest.approx(truth.compute, abs=0.03)
    assert found.low_power_compute == pytest.approx(truth.low_power_compute, abs=0.03)
    assert found.memory == pytest.approx(truth.memory, abs=0.03)
    assert found.pcie_bytes_per_s == pytest.approx(truth.pcie_bytes_per_s, rel=0.1)
    assert found.overhead_s == pytest.approx(truth.overhead_s, abs=0.03e-3)


def test_what_is_left_out_has_no_part_in_the_fit() -> None:
    measured = made_up(Calibration(compute=0.56, memory=0.62))
    distorted = [
        replace(m, seconds=m.seconds * 3) if m.model == "llama30b" else m for m in measured
    ]
    plain = held_out(measured, "llama30b", lambda m: m.model)
    other = held_out(distorted, "llama30b", lambda m: m.model)
    assert other.calibration == plain.calibration
    assert other.points == plain.points == len(measured) // 2
    assert plain.median < 0.05 < 0.6 < other.median < 0.7


@needs_reference
def test_the_median_error_against_measurements_is_far_below_a_quarter() -> None:
    found = points(REFERENCE)
    assert len(found) > 1000
    for name, error in medians(found).items():
        assert error <= 0.25, name
