"""Small clusters to simulate: nodes in stages, all linked, step times that are easy to add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from bench.simulator.records import Recorder
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.objective import StepTimes
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode

LINEAR = StepTimes(
    prefill=((0.0, 0.0), (1000.0, 1.0)), decode=((0.0, 0.0), (1.0, 0.01), (101.0, 0.11))
)
"""A prompt token takes 1 ms per layer; n decodes 9 ms + n ms, so a one-token pass 10 ms."""

MakeCluster = Callable[..., tuple[Problem, Placement, Mapping[str, StepTimes]]]


@pytest.fixture
def make_cluster() -> MakeCluster:
    """`make(slices, kv_tokens=...)`: one node per slice, named as given, all of one type."""

    def make(
        slices: Mapping[str, tuple[int, int]],
        kv_tokens: float = 1e6,
        bytes_per_s: float = 1e6,
        latency_s: float = 0.001,
    ) -> tuple[Problem, Placement, Mapping[str, StepTimes]]:
        layers = max(end for _, end in slices.values())
        nodes = tuple(
            ProblemNode(
                name=NodeId(name),
                type_name="toy",
                region="here",
                max_layers=layers,
                tokens_per_s_by_layers=tuple(1000.0 / k for k in range(1, layers + 1)),
                kv_tokens_by_layers=(kv_tokens,) * layers,
                nic_in_bytes_per_s=1e9,
                nic_out_bytes_per_s=1e9,
                vram_bytes=1 << 30,
            )
            for name in slices
        )
        names = [node.name for node in nodes]
        ends = [(SOURCE, n) for n in names] + [(n, SINK) for n in names]
        ends += [(a, b) for a in names for b in names if a != b]
        links = tuple(ProblemLink(a, b, bytes_per_s, latency_s) for a, b in ends)
        problem = Problem("toy", layers, 2, 1000, nodes, links)
        held = {NodeId(n): LayerRange(first, end) for n, (first, end) in slices.items()}
        return problem, Placement(layers, held), {"toy": LINEAR}

    return make


class LogRecorder(Recorder):
    """Keeps every call beside what a Recorder keeps, for timelines worked out by hand."""

    def __init__(self, warmup_s: float = 0.0, duration_s: float = 1e9) -> None:
        super().__init__(warmup_s=warmup_s, duration_s=duration_s)
        self.token_log: list[tuple[str, float]] = []
        self.step_log: list[tuple[str, float, float, int, int, int]] = []
        self.end_log: dict[str, tuple[float, bool, str]] = {}
        self.arrival_log: dict[str, float] = {}

    def on_arrival(self, request: str, at_s: float, prompt_tokens: int, output_tokens: int) -> None:
        super().on_arrival(request, at_s, prompt_tokens, output_tokens)
        self.arrival_log[request] = at_s

    def on_token(self, request: str, at_s: float, count: int) -> None:
        super().on_token(request, at_s, count)
        self.token_log += [(request, at_s)] * count

    def on_end(self, request: str, at_s: float, ok: bool, reason: str) -> None:
        super().on_end(request, at_s, ok, reason)
        assert request not in self.end_log, f"request {request} ended twice"
        self.end_log[request] = (at_s, ok, reason)

    def on_step(
        self,
        node: str,
        start_s: float,
        end_s: float,
        decode_rows: int,
        prefill_tokens: int,
        layers: int,
    ) -> None:
        super().on_step(node, start_s, end_s, decode_rows, prefill_tokens, layers)
        self.step_log.append((node, start_s, end_s, decode_rows, prefill_tokens, layers))


@pytest.fixture
def log() -> LogRecorder:
    return LogRecorder()
