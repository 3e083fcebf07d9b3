"""What a node measures before it joins: once, kept, and never at the price of joining."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import torch

from helix_mq.messages.control import Register
from helix_mq.models.digest import model_digest
from helix_mq.packing import pack, unpack
from nodes import measuring
from nodes.identity import NodeIdentity, identify
from nodes.settings import MeasureSection, NodeSettings
from solver.objective import StepTimes as PlannerTimes


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeSettings:
    monkeypatch.setattr(measuring, "default_cache", lambda: tmp_path)
    # Other tests' processes are no reason to measure twice here.
    monkeypatch.setattr(measuring, "BUSY", 1.0)
    return NodeSettings(
        name="n",
        model=tiny_folder,
        device="cpu",
        dtype="float32",
        memory=64 << 20,
        threads=torch.get_num_threads(),
        measure=MeasureSection(max_seconds=0.2),
    )


@pytest.fixture
def identity(settings: NodeSettings, tiny_folder: Path) -> NodeIdentity:
    return identify(settings, tiny_folder)


def test_what_is_measured_is_what_the_planner_takes_and_fits_the_wire(
    settings: NodeSettings, identity: NodeIdentity
) -> None:
    times = measuring.with_times(settings, identity).times
    assert times is not None
    PlannerTimes(times.prefill, times.decode)
    said = Register("n", 1, "tcp://h:1", "", "cpu", 1, 4, "d", "1", times=times)
    assert unpack(pack(said), Register) == said


def test_the_next_start_finds_it_measured(
    settings: NodeSettings, identity: NodeIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        first = measuring.with_times(settings, identity).times
        assert "measuring this machine with layer" in caplog.text
        caplog.clear()
        assert measuring.with_times(settings, identity).times == first
    assert "measured before" in caplog.text
    assert "measuring this machine" not in caplog.text


async def test_nodes_that_start_together_measure_once(
    settings: NodeSettings, identity: NodeIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        three = [asyncio.to_thread(measuring.with_times, settings, identity) for _ in range(3)]
        times = [found.times for found in await asyncio.gather(*three)]
    assert times[0] == times[1] == times[2]
    assert caplog.text.count("measuring this machine") == 1


def test_what_cannot_be_measured_costs_a_line(
    settings: NodeSettings, identity: NodeIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    small = replace(identity, memory_bytes=20_000)
    assert measuring.with_times(settings, small) == small
    assert "has not measured itself (" in caplog.text


def test_the_digest_is_part_of_what_is_kept(
    settings: NodeSettings, identity: NodeIdentity, tiny_folder: Path, tmp_path: Path
) -> None:
    assert identity.model_digest == model_digest(tiny_folder)
    measuring.with_times(settings, identity)
    kept = list((tmp_path / "profiles").glob("*.json"))
    assert len(kept) == 1


def test_times_of_a_busy_machine_are_not_kept(
    settings: NodeSettings,
    identity: NodeIdentity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(measuring, "BUSY", -1.0)
    assert measuring.with_times(settings, identity).times is not None
    assert "are not kept" in caplog.text
    assert list((tmp_path / "profiles").glob("*.json")) == []
