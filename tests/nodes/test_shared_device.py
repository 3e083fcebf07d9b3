"""Which nodes share a device: as found out on this machine, and as operators say."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import torch

from helix_mq.messages.control import Register
from nodes.settings import NodeSettings
from nodes.shared_device import device_id

CPU = [torch.device("cpu")]
CORES = len(os.sched_getaffinity(0))


def test_processes_on_the_same_cores_say_the_same() -> None:
    said = device_id("auto", CPU, CORES)
    assert said == device_id("auto", CPU, CORES)
    assert len(said) == 24


def test_who_leaves_most_cores_to_others_shares_none() -> None:
    assert device_id("auto", CPU, max(1, CORES // 2)) == "" or CORES == 1


@pytest.mark.skipif(CORES < 2, reason="a machine of one core has no others to be bound to")
def test_processes_bound_to_other_cores_share_none() -> None:
    said = device_id("auto", CPU, CORES)
    all_cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_cores)})
        bound = device_id("auto", CPU, 1)
    finally:
        os.sched_setaffinity(0, all_cores)
    assert bound
    assert bound != said


def test_operators_have_the_last_word() -> None:
    assert device_id("own", CPU, CORES) == ""
    assert device_id("gpu-slice.1", CPU, 1) == "gpu-slice.1"


@pytest.mark.parametrize("wanted", ["auto", "own", "a" * 64])
def test_what_the_setting_takes_fits_the_message(tmp_path: Path, wanted: str) -> None:
    settings = NodeSettings(name="a", model=tmp_path, shares_device=wanted)
    said = device_id(settings.shares_device, CPU, CORES)
    register = Register("n", 1, "tcp://h:1", "", "cpu", 1, 4, "d", "1", device_id=said)
    packed = msgspec.msgpack.encode(register)
    assert msgspec.msgpack.decode(packed, type=Register).device_id == said
