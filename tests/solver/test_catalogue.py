"""Machine names: what is accepted, what is refused in words, and figures that hang together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from solver.catalogue import GPU_TYPES, MACHINE_SIZES, Machine, UnknownMachine, machine


@pytest.mark.parametrize(
    ("spelling", "gpu", "count"),
    [
        ("A100", "A100-40", 1),
        ("V100", "V100", 1),
        ("L4", "L4", 1),
        ("T4", "T4", 1),
        ("L4x2", "L4", 2),
        ("T4x2", "T4", 2),
        ("T4x4", "T4", 4),
        ("8xH100", "H100", 8),
        ("8 x h100", "H100", 8),
        ("A100-80GB", "A100-80", 1),
        ("A100-40G x2", "A100-40", 2),
        ("NVIDIA L40S", "L40S", 1),
        ("GeForce RTX 4090", "RTX4090", 1),
        ("rtx-3090x4", "RTX3090", 4),
        ("H200x1", "H200", 1),
        ("cpu", "cpu", 1),
    ],
)
def test_reads_the_usual_spellings(spelling: str, gpu: str, count: int) -> None:
    assert machine(spelling) == Machine(GPU_TYPES[gpu], count)


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "x",
        "x2",
        "A101",
        "L4x3",
        "L4x0",
        "2xL4x2",
        "cpux2",
        "L4x2x2",
        "T4 T4",
        "H100x999",
        "L" * 99,
    ],
)
def test_refuses_in_words(spelling: str) -> None:
    with pytest.raises(ConfigError) as caught:
        machine(spelling)
    assert caught.value.param == "type"
    assert "H200" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", sorted(GPU_TYPES))
@pytest.mark.parametrize("count", MACHINE_SIZES)
def test_names_round_trip(name: str, count: int) -> None:
    if name == "cpu" and count > 1:
        with pytest.raises(UnknownMachine):
            machine(f"{name}x{count}")
        return
    group = Machine(GPU_TYPES[name], count)
    assert machine(group.name) == group
    assert group.vram_bytes == count * GPU_TYPES[name].vram_bytes


@given(st.text(max_size=80))
def test_any_text_is_a_machine_or_a_config_error(text: str) -> None:
    try:
        found = machine(text)
    except ConfigError:
        return
    assert machine(found.name) == found


def test_a_machine_shares_layers_evenly() -> None:
    with pytest.raises(UnknownMachine, match="3 devices"):
        Machine(GPU_TYPES["L4"], 3)


def test_entries_are_whole_and_plausible() -> None:
    for gpu in GPU_TYPES.values():
        assert gpu.source
        # Between a CPU (about 29) and an H100 (about 295) operations per byte read: a slipped
        # prefix falls outside.
        assert 20 < gpu.fp16_flops_per_s / gpu.memory_bytes_per_s < 450, gpu.name
        assert 16e9 <= gpu.vram_bytes <= 200e9
    assert [g.name for g in GPU_TYPES.values() if g.low_power] == ["T4", "L4"]
