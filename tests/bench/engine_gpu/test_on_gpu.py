"""The GPU suite's parts that are one process, on a device that is a counterfeit."""

from __future__ import annotations

import pytest
import torch

from bench.engine_gpu.part import Found, Job, find
from nodes.model.attention import choose
from tests.counterfeit_gpu.device import DEVICE, Gpu


def found(part: str) -> Found:
    return find(Job(part, str(DEVICE), tiny=True), print)


def test_every_attention_that_reads_pages_passes_its_trial(counterfeit_gpu: Gpu) -> None:
    backends = found("attention").part["backends"]
    assert len(backends) == len(choose.cuda_candidates(DEVICE, torch.bfloat16)) == 4
    assert [b for b in backends.values() if not b["passed"]] == []


def test_all_ways_of_computing_agree(counterfeit_gpu: Gpu) -> None:
    said = found("parity")
    assert said.device["type"] == "cuda"
    assert said.part["passed"], said.part
    assert said.part["ways"]["bfloat16, recorded decodes"]["replays"] > 0
    assert counterfeit_gpu.replays > 0


@pytest.mark.parametrize("part", ["decode", "prefill"])
def test_speeds_are_measured(counterfeit_gpu: Gpu, part: str) -> None:
    said = found(part).part
    assert "reason" not in said, said["reason"]
    assert said.get("recordings", {"off": ""})["off"] == ""
    assert (counterfeit_gpu.replays > 0) == (part != "prefill")
