"""Clusters by hand: 1 MB/s links, 1 ms a prompt token, 2 ms decodes, 1000 B between nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from bench.simulator.reference.setup import (
    COORDINATOR,
    LayerTimes,
    Limits,
    LinkSetup,
    NodeSetup,
    Setup,
)

DATA = Path(__file__).parents[5] / "shared" / "reference"

BuildSetup = Callable[..., Setup]


@pytest.fixture
def data() -> Path:
    """The published data, or a skip."""
    if not (DATA / "measured.json").is_file():
        pytest.skip("published reference data is not here (../shared/reference)")
    return DATA


@pytest.fixture
def build_setup() -> BuildSetup:
    """Builds a setup from layer ranges and links; a chain in order if no links are given."""

    def build(
        slices: Sequence[tuple[int, int]],
        links: Sequence[LinkSetup] | None = None,
        *,
        limits: Limits = Limits(3, 1000, 100, 100_000),
        kv_entries: float = 1e9,
        flow: float = 100.0,
        start_s: float = 0.0,
    ) -> Setup:
        if links is None:
            ends = [COORDINATOR, *range(len(slices)), COORDINATOR]
            links = [LinkSetup(src, dst, 1e6, 0.01, flow) for src, dst in pairwise(ends)]
        times = LayerTimes(
            prefill_s=tuple(0.001 * tokens for tokens in range(2001)),
            decode_s=(0.0, *([0.002] * 200)),
        )
        return Setup(
            name="by-hand",
            num_layers=max(end for _, end in slices),
            token_bytes=2,
            activation_bytes=998,
            start_s=start_s,
            coordinator_nic_in_bytes_per_s=1e9,
            coordinator_nic_out_bytes_per_s=1e9,
            nodes=tuple(
                NodeSetup(number, "T", first, end, kv_entries, 1e9, 1e9, limits)
                for number, (first, end) in enumerate(slices)
            ),
            links=tuple(links),
            times={"T": times},
        )

    return build
